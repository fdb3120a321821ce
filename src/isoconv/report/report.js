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
  const [data, image, angle, where, frame, bars] = ["data", "image", "angle", "where", "frame", "bars"].map((name) =>
    document.getElementById(`turn-${name}`),
  );
  const element = (name, text, className) => {
    const it = document.createElement(name);
    it.textContent = text ?? "";
    it.className = className ?? "";
    return it;
  };
  const show = () => {
    const set = all[data.value];
    const example = set.examples[image.value];
    const position = Number(angle.value);
    where.textContent = set.positions[position];
    angle.setAttribute("aria-valuetext", set.positions[position]);
    frame.style.backgroundPositionX = `${-160 * position}px`;
    bars.replaceChildren(
      ...set.networks.map((network, i) => {
        const chances = example.probabilities[i][position];
        const decision = example.decisions[i][position];
        const decided = set.labels.filter((_, c) => (set.kind === "multilabel" ? decision[c] : c === decision));
        const right = decided.join() === example.label.join();
        const box = element("div", null, `bars s${network.index}`);
        box.append(element("p", network.title), element("p", decided.join(", ") || "none", right ? "right" : "wrong"));
        const map = element("div", null, "map");
        map.role = "img";
        map.ariaLabel = `a feature map of ${network.title}`;
        map.style.backgroundImage = `url(${example.maps[i]})`;
        map.style.backgroundSize = `${96 * set.positions.length}px 96px`;
        map.style.backgroundPositionX = `${-96 * position}px`;
        box.append(map);
        const list = element("dl");
        const order = chances.map((_, c) => c);
        for (const c of order) {
          const bar = element("dd", null, "bar");
          const fill = element("i");
          fill.style.width = `${100 * chances[c]}%`;
          bar.append(fill);
          list.append(element("dt", set.labels[c]), bar, element("dd", `${(100 * chances[c]).toFixed(1)} %`, "n"));
        }
        box.append(list);
        return box;
      }),
    );
  };
  const chooseImage = () => {
    const set = all[data.value];
    const example = set.examples[image.value];
    frame.style.backgroundImage = `url(${example.strip})`;
    frame.style.backgroundSize = `${160 * set.positions.length}px 160px`;
    show();
  };
  const chooseData = () => {
    const set = all[data.value];
    angle.max = set.positions.length - 1;
    angle.value = 0;
    image.replaceChildren(
      ...set.examples.map((example, i) => {
        const option = element("option", `no. ${example.number}, ${example.label.join(", ") || "no label"}`);
        option.value = i;
        return option;
      }),
    );
    chooseImage();
  };
  data.addEventListener("change", chooseData);
  image.addEventListener("change", chooseImage);
  angle.addEventListener("input", show);
  chooseData();
}
