"use strict";
const $ = (id) => document.getElementById(id);
const [drop, file, error, result, ring, frame, angle, where, spin, axis, curve, drawn, quantity] = [
  "drop", "file", "error", "result", "ring", "frame", "angle", "where", "spin", "axis", "curve", "drawn", "quantity",
].map($);
const panels = [...document.querySelectorAll(".network")];
const kept = [...document.querySelectorAll(".kept")];
const percent = (p) => `${(100 * p).toFixed(1)}\u00a0%`;
const rounded = (value) => String(Number(value.toPrecision(4)));
const text = (value, unit) => (value === null ? "–" : unit === "%" ? percent(value) : `${rounded(value)}\u00a0${unit}`.trim());
const plot = { left: 48, right: 0, top: 10, bottom: 172, low: 0, high: 1 }; // pixels; the slider below has the same ends
const xAt = (degrees) => plot.left + ((plot.right - plot.left) * degrees) / 360;
const yAt = (value) => plot.bottom - ((plot.bottom - plot.top) * (value - plot.low)) / (plot.high - plot.low);

let chosen = null; // the file, to turn it about another axis
let running = null; // what stops the request under way
let head = null; // first line of the answer
let rows = []; // those that follow, by angle

const svg = (name, attributes, text) => {
  const it = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) it.setAttribute(key, value);
  if (text !== undefined) it.textContent = text;
  return it;
};

/** What is drawn of network `i` in a row: its title and unit are those of the upright answer. */
const point = (row, i) => row.networks[i].curves[Number(quantity.value)];
const known = (i) => rows.map((row) => point(row, i).value).filter((value) => value !== null);

function show() {
  if (!rows.length) return;
  const step = (Number(angle.value) / angle.step) % head.angles.length; // 360 degrees are 0
  const row = rows[Math.min(step, rows.length - 1)];
  where.textContent = `${row.angle}°`;
  ring.style.setProperty("--angle", row.angle);
  frame.src = row.image;
  frame.alt = `${head.file}, turned by ${row.angle} degrees`;
  row.networks.forEach((network, i) => {
    const panel = panels[i];
    const label = panel.querySelector(".label");
    label.replaceChildren(network.said || valued(row, i));
    label.classList.toggle("changed", network.said !== rows[0].networks[i].said);
    const [bars, numbers] = [panel.querySelectorAll(".bar"), panel.querySelectorAll(".n")];
    network.readings.forEach((value, c) => {
      if (bars[c].firstElementChild) bars[c].firstElementChild.style.width = `${100 * value}%`;
      numbers[c].textContent = text(value, head.readings[c].unit);
    });
    if (network.mask) {
      panel.querySelector(".image").src = row.image;
      panel.querySelector(".mask").src = network.mask;
      panel.querySelector(".mask").alt = `labels of ${head.networks[i]} at ${row.angle} degrees`;
    }
    const why = panel.querySelector(".saliency");
    if (why) {
      why.hidden = !$("why").checked || !network.saliency;
      if (!why.hidden) {
        why.firstElementChild.src = network.saliency;
        why.firstElementChild.alt = `what the answer of ${head.networks[i]} rests on at ${row.angle} degrees`;
      }
    }
    panel.querySelector(".features").classList.toggle("on", Boolean(network.maps));
    if (!network.maps) return;
    const maps = panel.querySelector(".maps");
    while (maps.childElementCount < network.maps.length) maps.append(document.createElement("img"));
    network.maps.forEach((source, m) => {
      maps.children[m].src = source;
      maps.children[m].alt = `feature map ${m + 1}`;
    });
    panel.querySelector(".note").textContent = `Feature maps, ${percent(network.change)} from the upright ones`;
  });
  const said = row.networks.map((n, i) => `${head.networks[i]}: ${n.said ? `${n.said}, ` : ""}${titled(point(row, i))}`);
  angle.setAttribute("aria-valuetext", `${row.angle} degrees. ${said.join("; ")}`);
  drawCursor(row, step ? row.angle : Number(angle.value));
}

const valued = (row, i) => {
  const [line, title] = [document.createDocumentFragment(), document.createElement("small")];
  title.textContent = ` ${point(row, i).title}`;
  line.append(text(point(row, i).value, point(row, i).unit), title);
  return line;
};

const titled = ({ title, value, unit }) => `${title} ${text(value, unit)}`;

/** The ends of the axis, and the distance of its ticks. */
function scale() {
  if (point(rows[0], 0).unit === "%") return { low: 0, high: 1, step: 0.25 };
  const values = panels.flatMap((_, i) => known(i));
  const [least, most] = [Math.min(...values, Infinity), Math.max(...values, -Infinity)];
  if (!values.length) return { low: 0, high: 1, step: 1 };
  const room = 0.1 * (most - least) || 0.1 * Math.abs(most) || 1;
  const power = 10 ** Math.floor(Math.log10(most - least + 2 * room));
  const step = [0.2, 0.5, 1, 2].map((m) => m * power).find((each) => (most - least + 2 * room) / each <= 5);
  return { low: least - room, high: most + room, step };
}

function drawCurve() {
  const { step, ...ends } = scale();
  Object.assign(plot, ends, { right: curve.clientWidth - 24 });
  const { unit } = point(rows[0], 0);
  const axes = svg("g", { class: "axis" });
  for (let i = Math.ceil(plot.low / step - 1e-6); i * step <= plot.high + 1e-6 * step; i += 1) {
    const y = yAt(i * step);
    axes.append(svg("line", { class: "grid", x1: plot.left, x2: plot.right, y1: y, y2: y }));
    const tick = unit === "%" ? `${100 * i * step} %` : rounded(i * step);
    if (unit !== "%" || i % 2 === 0) axes.append(svg("text", { class: "end", x: plot.left - 8, y: y + 4 }, tick));
  }
  for (let degrees = 0; degrees <= 360; degrees += 90) {
    axes.append(svg("text", { class: "mid", x: xAt(degrees), y: plot.bottom + 24 }, `${degrees}°`));
  }
  const lines = panels.map((_, i) => {
    const closed = rows.length === head.angles.length ? [...rows, { ...rows[0], angle: 360 }] : rows;
    const points = closed.filter((row) => point(row, i).value !== null);
    const at = points.map((row) => `${xAt(row.angle).toFixed(1)},${yAt(point(row, i).value).toFixed(1)}`);
    return svg("polyline", { class: `s${i}`, points: at.join(" ") });
  });
  curve.replaceChildren(axes, ...lines, svg("g", { id: "cursor" }));
  const summary = panels.map((_, i) => {
    const { said } = rows[0].networks[i];
    const same = rows.filter((row) => row.networks[i].said === said).length;
    const answers = said ? `answers ${said} at ${same} of ${rows.length} angles; ` : "";
    const range = known(i).length ? `${text(Math.min(...known(i)), unit)} to ${text(Math.max(...known(i)), unit)}` : "–";
    kept[i].textContent = `${answers}${point(rows[0], i).title}: ${range}`;
    return `${head.networks[i]} ${kept[i].textContent}`;
  });
  curve.setAttribute("aria-label", `Against the angle. ${summary.join(". ")}`);
}

function drawCursor(row, degrees) {
  const x = xAt(degrees);
  const marks = panels.map((_, i) => [i, point(row, i).value]).filter(([, value]) => value !== null);
  $("cursor").replaceChildren(
    svg("line", { class: "cursor", x1: x, x2: x, y1: plot.top, y2: plot.bottom }),
    ...marks.map(([i, value]) => svg("circle", { class: `s${i}`, cx: x, cy: yAt(value), r: 6 })),
  );
}

function turnTo(degrees) {
  angle.value = ((degrees % 360) + 360) % 360;
  show();
}

/** The lines of a response, each parsed, as they come. */
async function* linesOf(response) {
  let rest = "";
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const lines = (rest + decoder.decode(part.value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

/** Of a turn that stops half-way nothing stays. */
function dropHalf() {
  if (!head || rows.length === head.angles.length) return;
  [head, rows] = [null, []];
  result.hidden = true;
  document.body.classList.remove("shown");
}

async function load() {
  running?.abort();
  dropHalf();
  running = new AbortController();
  const { signal } = running;
  error.textContent = "";
  try {
    if (chosen.size > 1e6 * file.dataset.megabytes) {
      throw new Error(`${chosen.name} has more than ${file.dataset.megabytes} MB; send a smaller file`);
    }
    const form = new FormData();
    form.append("file", chosen);
    if (axis) form.append("axis", axis.value);
    $("progress").textContent = "reading";
    const response = await fetch("turn", { method: "POST", body: form, signal });
    if (!response.ok) {
      const failed = { detail: `the server failed with status ${response.status}; its terminal says why` };
      throw new Error((await response.json().catch(() => failed)).detail);
    }
    let started = false;
    for await (const line of linesOf(response)) {
      if (line.detail) throw new Error(line.detail);
      if (line.angles) {
        [head, rows] = [line, []];
        continue;
      }
      rows.push(line);
      if (!started) begin();
      started = true;
      $("progress").textContent = rows.length < head.angles.length ? `${line.angle}° of 360°` : "";
      drawCurve();
      show();
    }
    if (rows.length < head.angles.length) throw new Error("the server stopped half-way; its terminal says why");
  } catch (problem) {
    if (signal.aborted) return;
    dropHalf();
    $("progress").textContent = "";
    error.textContent = problem instanceof TypeError ? "the server does not answer; is it still running?" : problem.message;
  }
}

function begin() {
  document.body.classList.add("shown");
  result.hidden = false;
  angle.value = 0;
  $("name").textContent = head.file;
  const { curves } = rows[0].networks[0];
  if (quantity.length !== curves.length) quantity.replaceChildren(...curves.map(({ title }, q) => new Option(title, q)));
  drawn.hidden = curves.length === 1;
}

function choose(files) {
  if (!files.length) return;
  [chosen] = files;
  load();
}

file.addEventListener("change", () => {
  choose([...file.files]);
  file.value = ""; // so that the same file can be chosen again, changed
});
axis?.addEventListener("change", load);
$("why")?.addEventListener("change", show);
quantity.addEventListener("change", () => {
  drawCurve();
  show();
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop") choose(event.dataTransfer.files);
  });
}

angle.addEventListener("input", show);
let turning = null;
spin.addEventListener("click", () => {
  clearInterval(turning);
  turning = turning ? null : setInterval(() => turnTo(Number(angle.value) + Number(angle.step)), 120);
  spin.setAttribute("aria-pressed", Boolean(turning));
});

ring.addEventListener("pointerdown", (event) => {
  const { left, top, width } = ring.getBoundingClientRect();
  const at = ({ clientX, clientY }) => (Math.atan2(clientX - left - width / 2, clientY - top - width / 2) * 180) / Math.PI;
  const grabbed = Number(angle.value) + at(event); // the screen's y axis points down: clockwise is positive
  ring.setPointerCapture(event.pointerId);
  ring.onpointermove = (moved) => turnTo(grabbed - at(moved));
});
for (const type of ["pointerup", "pointercancel"]) {
  ring.addEventListener(type, () => { ring.onpointermove = null; });
}

const pointAt = (event) => {
  const x = event.clientX - curve.getBoundingClientRect().left;
  angle.value = (360 * (x - plot.left)) / (plot.right - plot.left);
  show();
};
curve.addEventListener("pointerdown", (event) => {
  pointAt(event);
  curve.setPointerCapture(event.pointerId);
  curve.onpointermove = pointAt;
});
for (const type of ["pointerup", "pointercancel"]) {
  curve.addEventListener(type, () => { curve.onpointermove = null; });
}

new ResizeObserver(() => {
  if (rows.length) drawCurve();
  show();
}).observe(curve);
