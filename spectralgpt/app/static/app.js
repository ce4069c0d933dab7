// SPDX-License-Identifier: Apache-2.0
// The page: asks the server for a scene, draws windows, and shows the spectrum under the mouse from what it already has.
"use strict";

const byId = (id) => document.getElementById(id);
const choices = ["red", "green", "blue"];
const trueColour = [0.665, 0.56, 0.49];
const state = { scene: null, picture: null, step: 1, place: null, window: null, asked: 0 };

async function get(path, parameters = {}) {
  const response = await fetch(`api/${path}?${new URLSearchParams(parameters)}`);
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw new Error(told.error || `the server answered ${response.status}`);
  }
  return response;
}

function tell(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

async function guarded(text, work) {
  tell(text);
  try {
    await work();
    tell("");
  } catch (error) {
    tell(error.message, true);
  }
}

function fill(select, values, chosen) {
  select.replaceChildren(...values.map((value) => new Option(value, value)));
  if (chosen !== undefined) select.value = chosen;
}

const current = () => ({ scene: byId("scene").value, model: byId("model").value });

const isCurrent = (asked) => asked.scene === byId("scene").value && asked.model === byId("model").value;

function forgetScene() { // nothing of another scene stays beside a message about this one
  Object.assign(state, { scene: null, picture: null, window: null });
  for (const canvas of document.querySelectorAll("canvas")) canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  for (const id of ["scene-text", "window-text"]) byId(id).textContent = "";
  byId("spectrum-text").textContent = "move over a picture";
}

async function openScene() {
  const asked = current();
  forgetScene();
  const scene = await (await get("scene", asked)).json();
  if (!isCurrent(asked)) return; // another scene was chosen meanwhile
  state.scene = scene;
  state.place = [Math.floor(scene.shape[0] / 2), Math.floor(scene.shape[1] / 2)];
  choices.forEach((id, i) => {
    const distance = scene.wavelengths.map((um) => Math.abs(um - trueColour[i]));
    fill(byId(id), scene.bands, scene.bands[distance.indexOf(Math.min(...distance))]);
  });
  byId("scene-text").textContent = `${scene.shape[0]} x ${scene.shape[1]} pixels, ${scene.bands.length} bands, ` +
    `${scene.crs || "no coordinate system"}, ${scene.normalization} normalisation`;
  await drawOverview();
  await openWindow();
}

async function drawOverview() {
  const bands = choices.map((id) => byId(id).value).join(","), asked = current();
  const response = await get("quicklook", { ...asked, bands });
  if (!isCurrent(asked)) return;
  state.step = Number(response.headers.get("X-Step"));
  state.picture = await createImageBitmap(await response.blob());
  markWindow();
}

function markWindow() {
  const canvas = byId("overview"), context = canvas.getContext("2d"), { picture, step, window } = state;
  if (!picture) return;
  canvas.width = picture.width;
  canvas.height = picture.height;
  context.drawImage(picture, 0, 0);
  if (!window) return;
  const [, height, width] = window.shape;
  context.lineWidth = Math.max(1, picture.width / 300);
  context.strokeStyle = "#ffd400";
  context.strokeRect(window.column / step, window.row / step, width / step, height / step);
}

async function openWindow() {
  const number = ++state.asked, [row, column] = state.place;
  const parameters = { ...current(), row, column, ratio: byId("ratio").value, seed: byId("seed").value };
  const buffer = await (await get("window", parameters)).arrayBuffer();
  if (number !== state.asked) return; // a newer question is under way
  const length = new DataView(buffer).getUint32(0, true);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const [bands, height, width] = told.shape, count = bands * height * width, start = 4 + length;
  state.window = {
    ...told,
    truth: new Float32Array(buffer, start, count),
    rebuilt: new Float32Array(buffer, start + 4 * count, count),
    hidden: new Uint8Array(buffer, start + 8 * count, count),
    embedding: new Uint8Array(buffer, start + 9 * count, 3 * height * width),
  };
  byId("window-text").textContent = `row ${told.row}, column ${told.column}` +
    (told.psnr === null ? "" : `; hidden values rebuilt at ${told.psnr.toFixed(1)} dB`);
  markWindow();
  drawPanels();
}

function drawPanels() {
  const { window, scene } = state;
  if (!window) return;
  const [bands, height, width] = window.shape, area = height * width;
  const chosen = choices.map((id) => scene.bands.indexOf(byId(id).value));
  const ranges = chosen.map((band) => range(window.truth.subarray(band * area, (band + 1) * area)));
  const colour = (values, i, c) => 255 * Math.pow(share(values[chosen[c] * area + i], ranges[c]), 0.8);
  const scales = scene.bands.map((_, band) => range(window.truth.subarray(band * area, (band + 1) * area)));
  paint("original", (i, c) => colour(window.truth, i, c));
  paint("seen", (i, c) => (window.hidden[chosen[c] * area + i] ? 128 : colour(window.truth, i, c)));
  paint("rebuilt", (i, c) => colour(window.rebuilt, i, c));
  paint("embedding", (i, c) => window.embedding[3 * i + c]);
  const error = new Float32Array(area);
  for (let band = 0; band < bands; band++) {
    const extent = scales[band][1] - scales[band][0];
    for (let i = 0; i < area; i++) error[i] += Math.abs(window.rebuilt[band * area + i] - window.truth[band * area + i]) / extent / bands;
  }
  paint("error", (i) => 255 * Math.min(error[i] / 0.25, 1));
}

function range(values) {
  const sorted = Float32Array.from(values).sort(), at = (p) => sorted[Math.floor(p * (sorted.length - 1))];
  return [at(0.01), Math.max(at(0.99), at(0.01) + 1e-6)];
}

const share = (value, [low, high]) => Math.min(Math.max((value - low) / (high - low), 0), 1);

function paint(id, value) {
  const canvas = byId(id), [, height, width] = state.window.shape;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = value(i, c);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function pixelUnder(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const at = (offset, extent, size) => Math.min(Math.max(Math.floor((offset / extent) * size), 0), size - 1);
  return [at(event.clientY - box.top, box.height, canvas.height), at(event.clientX - box.left, box.width, canvas.width)];
}

function drawSpectrum(row, column) {
  const { window, scene } = state, [bands, height, width] = window.shape;
  const canvas = byId("spectrum"), context = canvas.getContext("2d"), W = canvas.width, H = canvas.height;
  const order = [...scene.wavelengths.keys()].sort((a, b) => scene.wavelengths[a] - scene.wavelengths[b]);
  const values = (array) => order.map((band) => array[(band * height + row) * width + column]);
  const truth = values(window.truth), rebuilt = values(window.rebuilt), hidden = values(window.hidden);
  const low = Math.min(...truth, ...rebuilt), high = Math.max(...truth, ...rebuilt, low + 1e-6);
  const left = 64, bottom = 34, top = 10, slot = (W - left - 10) / bands;
  const x = (i) => left + (i + 0.5) * slot, y = (v) => top + (1 - (v - low) / (high - low)) * (H - top - bottom);
  context.clearRect(0, 0, W, H);
  context.fillStyle = "#e9e9ee";
  hidden.forEach((is, i) => is && context.fillRect(left + i * slot, top, slot, H - top - bottom));
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = "#666";
  context.textAlign = "right";
  for (const v of [low, (low + high) / 2, high]) context.fillText(v.toPrecision(4), left - 6, y(v) + 4);
  context.textAlign = "center";
  const every = Math.ceil(bands / 16);
  order.forEach((band, i) => {
    if (i % every) return;
    context.fillText(scene.bands[band], x(i), H - 18);
    context.fillText(scene.wavelengths[band].toFixed(2), x(i), H - 5);
  });
  for (const [line, style, dash] of [[truth, "#1b1b1b", []], [rebuilt, "#d1495b", [6, 4]]]) {
    context.strokeStyle = style;
    context.lineWidth = 2;
    context.setLineDash(dash);
    context.beginPath();
    line.forEach((v, i) => context.lineTo(x(i), y(v)));
    context.stroke();
  }
  context.setLineDash([]);
  byId("spectrum-text").textContent = `row ${window.row + row}, column ${window.column + column}`;
}

function listen() {
  for (const id of ["scene", "model"]) byId(id).addEventListener("change", () => guarded("reading the scene", openScene));
  for (const id of choices) {
    byId(id).addEventListener("change", () => state.scene && guarded("drawing", async () => { await drawOverview(); drawPanels(); }));
  }
  for (const id of ["ratio", "seed"]) byId(id).addEventListener("change", () => state.scene && guarded("rebuilding", openWindow));
  byId("ratio").addEventListener("input", () => {
    byId("ratio-text").textContent = `${Math.round(100 * byId("ratio").value)} %`;
  });
  byId("overview").addEventListener("click", (event) => {
    if (!state.picture) return;
    state.place = pixelUnder(byId("overview"), event).map((value) => value * state.step);
    guarded("rebuilding", openWindow);
  });
  for (const id of ["original", "seen", "rebuilt", "error", "embedding"]) {
    byId(id).addEventListener("mousemove", (event) => state.window && drawSpectrum(...pixelUnder(byId(id), event)));
  }
}

listen();
guarded("looking for scenes and models", async () => {
  const found = await (await get("list")).json();
  if (!found.scenes.length || !found.models.length) {
    throw new Error(`expected scenes and autoencoders in the folder, found ${found.scenes.length} and ${found.models.length}`);
  }
  fill(byId("scene"), found.scenes);
  fill(byId("model"), found.models);
  await openScene();
});
