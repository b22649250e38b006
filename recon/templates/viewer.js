"use strict";
// Draws the slices of a report. Pictures lie in script elements as text; recon/report.py says how they are encoded.
(() => {
  if (!("DecompressionStream" in window)) return; // the page then says what is missing
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("viewer-data").textContent);
  const { slices, height, width, layers } = data;
  const colours = Uint8Array.from(atob(data.colours), (c) => c.charCodeAt(0));
  const KEPT = Math.max(8, Math.floor(4e7 / (height * width))); // decoded pictures that are kept
  const kept = new Map();
  const windows = {}; // of the error bar, and of all others: low and high end, as shares of white
  for (const layer of layers) windows[group(layer)] ??= { low: 0, high: layer.high };
  const state = { layer: layers[0], slice: Math.floor(slices / 2), sample: 0 };

  function group(layer) { return layer.key === "std" ? "std" : "images"; }
  function percent(share, digits = 1) { return (100 * share).toFixed(digits) + " %"; }

  async function decode(id) {
    const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = height * width, codes = new Uint16Array(count);
    for (let i = 0, x = 0; i < count; i++) {
      const folded = planes[i] | (planes[count + i] << 8);
      const change = folded & 1 ? -(folded + 1) / 2 : folded / 2;
      codes[i] = change + (((x ? codes[i - 1] : 0) + (i < width ? 0 : codes[i - width])) >> 1);
      x = x + 1 === width ? 0 : x + 1;
    }
    return codes;
  }

  // Whole numbers of a picture; the promise is kept, so that nothing is decoded twice at a time.
  function pixels(layer, slice, sample) {
    const id = `${layer.key}-${slice}-${sample}`;
    const found = kept.get(id) ?? decode(id);
    kept.delete(id);
    kept.set(id, found);
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    return found;
  }

  function sampleOf(layer) { return layer.key === "sample" ? state.sample : 0; }
  function share(layer, slice, sample, code) { return layer.peaks[slice][sample] * (code / layer.levels) ** layer.power; }

  function colour(layer, position) {
    const i = Math.max(0, Math.min(255, Math.round(255 * position)));
    const [r, g, b] = layer.key === "std" ? colours.subarray(3 * i, 3 * i + 3) : [i, i, i];
    return (255 << 24) | (b << 16) | (g << 8) | r;
  }

  function paint(canvas, codes, layer, slice, step) {
    const { low, high } = windows[group(layer)], sample = sampleOf(layer);
    const table = new Uint32Array(layer.levels + 1);
    for (let c = 0; c <= layer.levels; c++) table[c] = colour(layer, (share(layer, slice, sample, c) - low) / (high - low));
    const columns = Math.ceil(width / step), rows = Math.ceil(height / step);
    if (canvas.width !== columns || canvas.height !== rows) { canvas.width = columns; canvas.height = rows; }
    const image = new ImageData(columns, rows), out = new Uint32Array(image.data.buffer);
    for (let y = 0, i = 0; y < rows; y++)
      for (let x = 0; x < columns; x++) out[i++] = table[codes[y * step * width + x * step]];
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  let wanted = 0;
  async function show() {
    const ticket = ++wanted, { layer, slice } = state;
    describe();
    const codes = await pixels(layer, slice, sampleOf(layer));
    if (ticket !== wanted) return;
    paint($("view"), codes, layer, slice, 1);
    document.documentElement.dataset.shown = `${layer.key}-${slice}-${sampleOf(layer)}`;
    for (const next of [slice + 1, slice - 1]) if (next >= 0 && next < slices) pixels(layer, next, sampleOf(layer));
  }

  function describe() {
    const { layer, slice } = state, { low, high } = windows[group(layer)];
    const number = `${slice} (${slice + 1} of ${slices})`;
    $("view").setAttribute("aria-label", `${layer.title}, slice ${number}`);
    $("slice").value = slice;
    $("slice").setAttribute("aria-valuetext", number);
    $("slice-text").textContent = number;
    $("sample-control").hidden = layer.key !== "sample";
    $("sample").max = layer.peaks[slice].length - 1;
    $("sample-text").textContent = `${state.sample + 1} of ${layer.peaks[slice].length}`;
    const top = Math.max(layer.high, ...layer.peaks.flat());
    for (const [id, value, most] of [["width", high - low, 2 * top], ["level", (low + high) / 2, top]]) {
      $(id).min = id === "width" ? layer.high / 100 : 0;
      $(id).max = most;
      $(id).value = value;
      $(id).setAttribute("aria-valuetext", percent(value));
      $(id + "-text").textContent = percent(value);
    }
    $("bar-low").textContent = percent(low);
    $("bar-high").textContent = percent(high);
    $("grid-caption").textContent = `${layer.title}, from ${percent(low)} (black) to ${percent(high)} of white.`;
    document.querySelectorAll("#grid figure").forEach((figure, i) => figure.classList.toggle("current", i === slice));
    document.querySelectorAll(".chart .cursor").forEach((line) => {
      const { x, step } = line.closest("svg").dataset;
      for (const end of ["x1", "x2"]) line.setAttribute(end, +x + slice * +step);
    });
    const bar = $("bar").getContext("2d"), strip = bar.createImageData(256, 1), out = new Uint32Array(strip.data.buffer);
    for (let i = 0; i < 256; i++) out[i] = colour(layer, i / 255);
    bar.putImageData(strip, 0, 0);
  }

  // The grid is always drawn, as a browser prints what is there and waits for nothing.
  let round = 0;
  async function showGrid() {
    const mine = ++round, { layer } = state, step = Math.ceil(Math.sqrt((slices * height * width) / 3e7));
    delete document.documentElement.dataset.grid;
    const canvases = document.querySelectorAll("#grid canvas");
    for (let slice = 0; slice < slices; slice++) {
      const codes = await pixels(layer, slice, sampleOf(layer));
      if (mine !== round) return;
      paint(canvases[slice], codes, layer, slice, step);
    }
    document.documentElement.dataset.grid = layer.key;
  }

  let timer;
  function update(change) {
    Object.assign(state, change);
    state.slice = Math.max(0, Math.min(slices - 1, state.slice));
    show();
    if ("slice" in change) return;
    clearTimeout(timer);
    timer = setTimeout(showGrid, 120);
  }

  function setWindow(size, level) {
    const least = state.layer.high / 100, width = Math.max(least, size);
    windows[group(state.layer)] = { low: level - width / 2, high: level + width / 2 };
    update({});
  }

  function resetWindow() {
    windows[group(state.layer)] = { low: 0, high: state.layer.high };
    update({});
  }

  function build() {
    for (const [i, layer] of layers.entries()) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "layer", value: layer.key, checked: i === 0 });
      input.addEventListener("change", () => update({ layer }));
      label.append(input, layer.title);
      $("layers").append(label);
    }
    $("no-samples").hidden = layers.some((layer) => layer.key === "sample") || !layers.some((layer) => layer.key === "std");
    for (let slice = 0; slice < slices; slice++) {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      const canvas = document.createElement("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `slice ${slice}`);
      canvas.style.aspectRatio = data.aspect;
      caption.textContent = slice;
      figure.append(canvas, caption);
      figure.addEventListener("click", () => update({ slice }));
      $("grid").append(figure);
    }
    $("view").style.aspectRatio = data.aspect;
    for (const id of ["viewer", "all-slices"]) $(id).hidden = false;
    $("broken").hidden = true;
  }

  function listen() {
    $("slice").addEventListener("input", (event) => update({ slice: +event.target.value }));
    $("sample").addEventListener("input", (event) => update({ sample: +event.target.value }));
    const sliders = () => setWindow(+$("width").value, +$("level").value);
    for (const id of ["width", "level"]) $(id).addEventListener("input", sliders);
    $("reset").addEventListener("click", resetWindow);
    $("view").addEventListener("dblclick", resetWindow);
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", key);
    const view = $("view");
    let from = null;
    view.addEventListener("pointerdown", (event) => {
      const { low, high } = windows[group(state.layer)];
      from = { x: event.clientX, y: event.clientY, size: high - low, level: (low + high) / 2 };
      view.setPointerCapture(event.pointerId);
    });
    view.addEventListener("pointermove", (event) => {
      if (!from) return read(event);
      const per = state.layer.high / view.clientWidth; // across the image: once the usual window
      setWindow(from.size + 2 * per * (event.clientX - from.x), from.level + per * (event.clientY - from.y));
    });
    for (const name of ["pointerup", "pointercancel"]) view.addEventListener(name, () => { from = null; });
    view.addEventListener("pointerleave", () => { $("readout").textContent = "\u00a0"; });
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT" && event.key.startsWith("Arrow")) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    if (event.key in steps && (event.key.startsWith("Arrow") || event.target === $("view"))) update({ slice: state.slice + steps[event.key] });
    else if (event.key === "r" || event.key === "R") resetWindow();
    else if (layers[event.key - 1]) document.querySelectorAll("#layers input")[event.key - 1].click();
    else return;
    event.preventDefault();
  }

  async function read(event) {
    const box = $("view").getBoundingClientRect(), { slice, layer } = state;
    const x = Math.floor((width * (event.clientX - box.left)) / box.width);
    const y = Math.floor((height * (event.clientY - box.top)) / box.height);
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const value = async (of) => share(of, slice, sampleOf(of), (await pixels(of, slice, sampleOf(of)))[y * width + x]);
    const std = layers.find((of) => of.key === "std");
    let text = `row ${y}, column ${x}: ${percent(await value(layer))}`;
    if (std && layer.key === "image") text += ` ± ${percent(await value(std))}`;
    $("readout").textContent = text;
  }

  build();
  listen();
  update({});
})();
