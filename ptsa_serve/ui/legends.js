// What stands below each picture: what its colours mean, and what is under the cursor.

import { depthRange, magma } from "./colors.js";

const metres = (value) => `${value.toFixed(2)} m`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function swatch(color) {
  const made = element("span", { className: "swatch" });
  made.style.backgroundColor = `rgb(${color.map(Math.round).join(" ")})`;
  return made;
}

/** The value of `map` at pixel `i`, in words. */
export function describe(task, map, i) {
  if (task.kind === "classes") return task.classes[map.data[i]] ?? `class ${map.data[i]}`;
  if (task.kind === "metres") return metres(map.data[i]);
  if (task.kind === "probability" || task.kind === "boundary") return `${(100 * map.data[i]).toFixed(0)} %`;
  return `(${[0, 1, 2].map((k) => map.data[3 * i + k].toFixed(2)).join(", ")})`;
}

/** The legend of `task`; `highlight(index or null)` is called when a class is chosen. */
export function legend(task, map, highlight) {
  const box = element("div", { className: "legend" });
  if (task.kind === "classes") box.append(classes(task, map, highlight));
  else if (task.kind === "metres") box.append(...depth(map));
  else if (task.kind === "unit_vectors") box.append(axes());
  else if (task.kind === "boundary") box.append(...grey("0 % inside", "100 % a boundary"));
  else box.append(...grey("0 % overlooked", "100 % catches the eye"));
  return box;
}

const grey = (low, high) => [bar((t) => [255 * t, 255 * t, 255 * t]), ends(low, high)];

function classes(task, map, highlight) {
  const counts = new Map();
  for (const index of map.data) counts.set(index, (counts.get(index) ?? 0) + 1);
  const list = element("ul");
  for (const [index, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const share = (100 * count) / map.data.length;
    const text = `${task.classes[index]} ${share < 0.1 ? "< 0.1" : share.toFixed(1)} %`;
    const button = element("button", { type: "button" }, swatch(task.colors[index]), text);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      highlight(on ? index : null);
    });
    list.append(element("li", {}, button));
  }
  return list;
}

function depth(map) {
  const { low, high, least, most } = depthRange(map);
  const middle = Math.sqrt(Math.max(low, 1e-3) * Math.max(high, 1e-3));
  const range = element("div", { className: "quiet" }, `nearest ${metres(least)}, farthest ${metres(most)}`);
  return [bar((t) => magma(1 - t)), ends(metres(low), metres(middle), metres(high)), range];
}

function axes() {
  const box = element("div", { className: "axes" });
  for (const [color, text] of [
    [[255, 128, 128], "faces right (x)"], [[128, 255, 128], "faces up (y)"], [[128, 128, 255], "faces the camera (z)"],
    [[0, 128, 128], "faces left"], [[128, 0, 128], "faces down"],
  ]) box.append(element("span", {}, swatch(color), text));
  return box;
}

function bar(color) {
  const canvas = element("canvas", { className: "scale", width: 256, height: 1 });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 256; x++) {
    context.fillStyle = `rgb(${color(x / 255).map(Math.round).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return canvas;
}

const ends = (...texts) => element("div", { className: "ends" }, ...texts.map((text) => element("span", {}, text)));
