"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const order = (a, b) => (down ? -1 : 1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
      const last = (a, b) => (a === "") - (b === ""); // what is missing
      const rows = [...table.tBodies[0].rows].sort((a, b) => last(key(a), key(b)) || order(key(a), key(b)));
      table.tBodies[0].append(...rows);
    });
  });
}

for (const box of document.querySelectorAll("[data-series]")) {
  box.addEventListener("change", () => {
    for (const part of document.querySelectorAll(`figure .s${box.dataset.series}, #ranks .s${box.dataset.series}`)) {
      part.style.display = box.checked ? "" : "none";
    }
  });
}

const opened = [];
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    opened.push(each);
  }
});
addEventListener("afterprint", () => {
  while (opened.length) opened.pop().open = false;
});

const json = document.getElementById("turn-json");
if (json) {
  const all = JSON.parse(json.textContent);
  const $ = (name) => document.getElementById(`turn-${name}`);
  const [data, image, angle, where, frame, truth, bars] = ["data", "image", "angle", "where", "frame", "truth", "bars"].map($);
  const element = (name, text, className) => {
    const it = document.createElement(name);
    it.textContent = text ?? "";
    it.className = className ?? "";
    return it;
  };
  /** Show one position of strips, the first on top. */
  const place = (it, strips, side, position, count) => {
    it.style.backgroundImage = strips.map((strip) => `url(${strip})`).join(",");
    it.style.backgroundSize = `${side * count}px ${side}px`;
    it.style.backgroundPositionX = `${-side * position}px`;
  };
  const picture = (label, strips, side, ...rest) => {
    const it = element("div", null, side === 160 ? "frame" : "map");
    it.role = "img";
    it.ariaLabel = label;
    place(it, strips, side, ...rest);
    return it;
  };
  const text = (value, unit) => (unit === "%" ? `${(100 * value).toFixed(1)} %` : `${value} ${unit}`.trim());
  const list = (readings, values) => {
    const rows = element("dl");
    readings.forEach(({ title, unit, colour }, c) => {
      const [name, bar] = [element("dt"), element("dd", null, "bar")];
      if (colour) name.append(element("span", null, "chip"));
      if (colour) name.firstChild.style.background = colour;
      name.append(title);
      if (unit === "%") bar.append(element("i"));
      if (unit === "%") bar.firstChild.style.width = `${100 * values[c]}%`;
      rows.append(name, bar, element("dd", text(values[c], unit), "n"));
    });
    return rows;
  };
  const show = () => {
    const set = all[data.value];
    const example = set.examples[image.value];
    const at = [Number(angle.value), set.positions.length];
    const [position] = at;
    where.textContent = set.positions[position];
    angle.setAttribute("aria-valuetext", set.positions[position]);
    place(frame, [example.strip], 160, ...at);
    truth.hidden = !example.truth;
    if (example.truth) place(truth.firstElementChild, [example.truth, example.strip], 160, ...at);
    bars.replaceChildren(
      ...set.networks.map((network, i) => {
        const answer = example.answers[i];
        const right = answer.right[position];
        const box = element("div", null, `bars s${network.index}`);
        const said = right === null ? answer.scores[position] : answer.said[position];
        box.append(element("p", network.title), element("p", said, right === null ? "" : right ? "right" : "wrong"));
        const seen = element("div", null, "answer");
        if (answer.masks) seen.append(picture(`the mask of ${network.title}`, [answer.masks, example.strip], 160, ...at));
        if (answer.maps) seen.append(picture(`a feature map of ${network.title}`, [answer.maps], 96, ...at));
        box.append(seen, list(set.readings, answer.readings[position]));
        return box;
      }),
    );
  };
  const chooseData = () => {
    const set = all[data.value];
    angle.max = set.positions.length - 1;
    angle.value = 0;
    image.replaceChildren(...set.examples.map(({ title }, i) => new Option(title, i)));
    show();
  };
  data.addEventListener("change", chooseData);
  image.addEventListener("change", show);
  angle.addEventListener("input", show);
  chooseData();
}
