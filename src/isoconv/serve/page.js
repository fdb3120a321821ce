"use strict";
const $ = (id) => document.getElementById(id);
const [drop, file, error, result, ring, frame, angle, where, spin, axis, curve] = [
  "drop", "file", "error", "result", "ring", "frame", "angle", "where", "spin", "axis", "curve",
].map($);
const panels = [...document.querySelectorAll(".network")];
const kept = [...document.querySelectorAll(".kept")];
const percent = (p) => `${(100 * p).toFixed(1)}\u00a0%`;
const words = (label) => [label].flat().join(", ") || "none";
const plot = { left: 48, right: 0, top: 10, bottom: 172 }; // pixels; the slider below has the same ends
const xAt = (degrees) => plot.left + ((plot.right - plot.left) * degrees) / 360;
const yAt = (p) => plot.bottom - (plot.bottom - plot.top) * p;

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

/** What network `i` answers for the upright image, and which class to follow: of several labels the likeliest. */
const upright = (i) => {
  const { label, probabilities } = rows[0].networks[i];
  return { label: words(label), follow: probabilities.indexOf(Math.max(...probabilities)) };
};

function show() {
  const step = (Number(angle.value) / angle.step) % head.angles.length; // 360 degrees are 0
  const row = rows[Math.min(step, rows.length - 1)];
  where.textContent = `${row.angle}°`;
  ring.style.setProperty("--angle", row.angle);
  frame.src = row.image;
  frame.alt = `${head.file}, turned by ${row.angle} degrees`;
  row.networks.forEach((network, i) => {
    const panel = panels[i];
    const label = panel.querySelector(".label");
    label.textContent = words(network.label);
    label.classList.toggle("changed", label.textContent !== upright(i).label);
    const [bars, numbers] = [panel.querySelectorAll(".bar i"), panel.querySelectorAll(".n")];
    network.probabilities.forEach((p, c) => {
      bars[c].style.width = `${100 * p}%`;
      numbers[c].textContent = percent(p);
    });
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
  const said = row.networks.map((n, i) => `${head.networks[i]}: ${words(n.label)}, ${percent(Math.max(...n.probabilities))}`);
  angle.setAttribute("aria-valuetext", `${row.angle} degrees. ${said.join("; ")}`);
  drawCursor(row, step ? row.angle : Number(angle.value));
}

function drawCurve() {
  plot.right = curve.clientWidth - 24;
  const axes = svg("g", { class: "axis" });
  for (const p of [0, 0.25, 0.5, 0.75, 1]) {
    axes.append(svg("line", { class: "grid", x1: plot.left, x2: plot.right, y1: yAt(p), y2: yAt(p) }));
    if (p % 0.5 === 0) axes.append(svg("text", { class: "end", x: plot.left - 8, y: yAt(p) + 4 }, `${100 * p} %`));
  }
  for (let degrees = 0; degrees <= 360; degrees += 90) {
    axes.append(svg("text", { class: "mid", x: xAt(degrees), y: plot.bottom + 24 }, `${degrees}°`));
  }
  const lines = panels.map((_, i) => {
    const { follow } = upright(i);
    const closed = rows.length === head.angles.length ? [...rows, { ...rows[0], angle: 360 }] : rows;
    const points = closed.map((row) => `${xAt(row.angle).toFixed(1)},${yAt(row.networks[i].probabilities[follow]).toFixed(1)}`);
    return svg("polyline", { class: `s${i}`, points: points.join(" ") });
  });
  curve.replaceChildren(axes, ...lines, svg("g", { id: "cursor" }));
  const summary = panels.map((_, i) => {
    const { label, follow } = upright(i);
    const values = rows.map((row) => row.networks[i].probabilities[follow]);
    const same = rows.filter((row) => words(row.networks[i].label) === label).length;
    const range = `${percent(Math.min(...values))} to ${percent(Math.max(...values))}`;
    kept[i].textContent = `answers ${label} at ${same} of ${rows.length} angles; probability of ${head.labels[follow]}: ${range}`;
    return `${head.networks[i]} ${kept[i].textContent}`;
  });
  curve.setAttribute("aria-label", `Probability by angle. ${summary.join(". ")}`);
}

function drawCursor(row, degrees) {
  const x = xAt(degrees);
  $("cursor").replaceChildren(
    svg("line", { class: "cursor", x1: x, x2: x, y1: plot.top, y2: plot.bottom }),
    ...panels.map((_, i) => svg("circle", { class: `s${i}`, cx: x, cy: yAt(row.networks[i].probabilities[upright(i).follow]), r: 6 })),
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

async function load() {
  running?.abort();
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
    $("progress").textContent = "";
    error.textContent = problem instanceof TypeError ? "the server does not answer; is it still running?" : problem.message;
  }
}

function begin() {
  document.body.classList.add("shown");
  result.hidden = false;
  angle.value = 0;
  $("name").textContent = head.file;
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

const point = (event) => {
  const x = event.clientX - curve.getBoundingClientRect().left;
  angle.value = (360 * (x - plot.left)) / (plot.right - plot.left);
  show();
};
curve.addEventListener("pointerdown", (event) => {
  point(event);
  curve.setPointerCapture(event.pointerId);
  curve.onpointermove = point;
});
for (const type of ["pointerup", "pointercancel"]) {
  curve.addEventListener(type, () => { curve.onpointermove = null; });
}

new ResizeObserver(() => {
  if (!rows.length) return;
  drawCurve();
  show();
}).observe(curve);
