// The photo and its maps side by side, with one place marked in all of them.

import { paint } from "./colors.js";
import { describe, legend } from "./legends.js";

/** Shows `photo` (an image URL) and the `maps` of `tasks` in `box`; returns what the page changes later. */
export function showFigures(box, photo, width, height, tasks, maps) {
  const figures = [figure("photo", photo, width, height)];
  for (const task of tasks) {
    if (!maps[task.name]) continue;
    const made = figure(task.name, photo, width, height);
    made.canvas = document.createElement("canvas");
    made.picture.insertBefore(made.canvas, made.cross);
    const map = maps[task.name];
    paint(made.canvas, task, map);
    made.read = (x, y) => describe(task, map, nearest(map.shape, x, y));
    made.root.append(legend(task, map, (only) => paint(made.canvas, task, map, only)));
    figures.push(made);
  }
  figures[0].read = (x, y) => `${Math.floor(x * width)}, ${Math.floor(y * height)}`;
  box.classList.toggle("tall", height > width);
  box.replaceChildren(...figures.map((each) => each.root));
  const place = { x: 0.5, y: 0.5 };
  const move = (x, y) => {
    place.x = Math.min(Math.max(x, 0), 0.9999);
    place.y = Math.min(Math.max(y, 0), 0.9999);
    for (const each of figures) mark(each, place);
  };
  for (const each of figures) listen(each.picture, place, move);
  move(place.x, place.y);
  return {
    blend: (share) => {
      for (const each of figures) if (each.canvas) each.canvas.style.opacity = String(1 - share);
    },
  };
}

function figure(name, photo, width, height) {
  const root = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const value = document.createElement("output");
  value.className = "value";
  caption.append(name[0].toUpperCase() + name.slice(1), value);
  const picture = document.createElement("div");
  picture.className = "picture";
  picture.style.aspectRatio = `${width} / ${height}`;
  picture.tabIndex = 0;
  picture.setAttribute("role", "img");
  picture.dataset.name = name;
  const image = document.createElement("img");
  image.alt = "";
  image.src = photo;
  // Formats that the server reads and the browser does not (TIFF): the grey ground stays.
  image.addEventListener("error", () => image.remove());
  const cross = document.createElement("div");
  cross.className = "cross";
  picture.append(image, cross);
  root.append(picture, caption);
  return { root, picture, value, cross, name, canvas: null, read: null };
}

function mark(each, { x, y }) {
  each.cross.style.left = `${100 * x}%`;
  each.cross.style.top = `${100 * y}%`;
  each.value.textContent = each.read(x, y);
  each.picture.setAttribute("aria-label", `${each.name}: ${each.value.textContent}`);
}

function listen(picture, place, move) {
  const point = (event) => {
    const area = picture.getBoundingClientRect();
    move((event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
  };
  picture.addEventListener("pointermove", point);
  picture.addEventListener("pointerdown", point);
  picture.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.1 : 0.01;
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [];
    if (dx === undefined) return;
    event.preventDefault();
    move(place.x + dx, place.y + dy);
  });
}

function nearest([height, width], x, y) {
  return Math.floor(y * height) * width + Math.floor(x * width);
}
