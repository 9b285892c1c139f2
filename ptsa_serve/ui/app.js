// The page: takes a photo by choice, drop, paste or sample, sends it, and shows what comes back.

import { showFigures } from "./figures.js";
import { readNpz } from "./npz.js";

const $ = (id) => document.getElementById(id);
const page = { model: null, photo: null, key: "", figures: null, address: null, running: null };

function headers(more = {}) {
  return page.key ? { ...more, "X-API-Key": page.key } : more;
}

/** Throws what the server says (problem details), or that it cannot be reached. */
async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw { title: "The server cannot be reached", detail: "Check the connection and that the server runs, then try again" };
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({ title: `The server answered ${answer.status}` }));
  problem.retryAfter = answer.headers.get("Retry-After");
  throw problem;
}

async function loadModel() {
  const { models } = await (await call("../v1/models")).json();
  page.model = models[0];
  const { name, version, tasks, limits, notes } = page.model;
  $("model").textContent = `${name} ${version}: ${tasks.map((task) => task.name).join(", ")}`;
  $("limits").textContent = `${limits.formats.join(", ")}, up to ${Math.floor(limits.max_bytes / 2 ** 20)} MiB and `
    + `${Math.floor(limits.max_pixels / 1e6)} megapixels.`;
  $("notes").textContent = notes.join(" ");
}

async function loadSamples() {
  const names = await (await call("samples.json")).json();
  $("samples").hidden = names.length === 0;
  for (const name of names) {
    const words = name.replace(/\.jpg$/, "").replaceAll(/[-_]/g, " ");
    const image = Object.assign(document.createElement("img"), { src: `samples/${name}`, alt: `Sample: ${words}` });
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(image);
    button.addEventListener("click", async () => {
      try {
        send(await (await call(`samples/${name}`)).blob(), button);
      } catch (problem) {
        showProblem(problem);
      }
    });
    const item = document.createElement("li");
    item.append(button);
    $("samples").append(item);
  }
}

async function send(photo, sample = null) {
  page.running?.abort();
  const running = (page.running = new AbortController());
  page.photo = photo;
  for (const each of $("samples").querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === sample));
  $("error").hidden = true;
  $("keyform").hidden = true;
  $("status").textContent = "Working on the photo…";
  try {
    if (!page.model) await loadModel();
    const started = performance.now();
    const options = { method: "POST", body: photo, headers: { "Content-Type": "application/octet-stream" }, signal: running.signal };
    const answer = await call("../v1/predict?format=npz&size=model", options);
    const maps = readNpz(await answer.arrayBuffer());
    show(answer, maps, performance.now() - started);
  } catch (problem) {
    if (problem.name === "AbortError") return;
    $("result").hidden = true;
    showProblem(problem);
  }
}

function show(answer, maps, milliseconds) {
  const [width, height] = answer.headers.get("X-Photo").match(/\d+/g).map(Number);
  if (page.address) URL.revokeObjectURL(page.address);
  page.address = URL.createObjectURL(page.photo);
  page.figures = showFigures($("figures"), page.address, width, height, page.model.tasks, maps);
  page.figures.blend($("blend").value / 100);
  const steps = [...answer.headers.get("Server-Timing").matchAll(/(\w+);dur=([\d.]+)/g)];
  const parts = steps.map(([, step, duration]) => `${step} ${Number(duration).toFixed(0)} ms`);
  $("timing").textContent = `${milliseconds.toFixed(0)} ms in all: ${parts.join(", ")}`;
  $("status").textContent = `Done: ${width} × ${height} pixels.`;
  $("result").hidden = false;
}

function showProblem(problem) {
  if (!("title" in problem)) console.error(problem);
  const wait = problem.retryAfter ? ` Try again in ${problem.retryAfter} s.` : "";
  $("status").textContent = "";
  $("error-title").textContent = problem.title ?? "The answer cannot be shown";
  const detail = problem.detail ?? problem.message ?? "";
  $("error-detail").textContent = `${detail.slice(0, 1).toUpperCase()}${detail.slice(1)}.${wait}`;
  $("error-id").textContent = problem.request_id ?? "";
  $("error-id").parentElement.hidden = !problem.request_id;
  $("error").hidden = false;
  $("keyform").hidden = problem.code !== "unauthorized";
}

async function download() {
  $("download").disabled = true;
  try {
    const options = { method: "POST", body: page.photo, headers: { "Content-Type": "application/octet-stream" } };
    const answer = await call("../v1/predict?format=zip&size=photo", options);
    const address = URL.createObjectURL(await answer.blob());
    Object.assign(document.createElement("a"), { href: address, download: "maps.zip" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (problem) {
    showProblem(problem);
  } finally {
    $("download").disabled = false;
  }
}

function take(files) {
  if (files.length > 0) send(files[0]);
}

$("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
$("blend").addEventListener("input", (event) => page.figures?.blend(event.target.value / 100));
$("download").addEventListener("click", download);
$("keyform").addEventListener("submit", (event) => {
  event.preventDefault();
  page.key = $("key").value.trim();
  if (page.photo) send(page.photo);
  else start();
});

function start() {
  $("error").hidden = true;
  $("keyform").hidden = true;
  loadModel().catch((problem) => {
    showProblem(problem);
    if (problem.code === "not-ready") setTimeout(start, 1000 * (problem.retryAfter ?? 2));
  });
}

start();
loadSamples().catch(showProblem);
