// Each image is sent as the body of a request of its own, one after another; the newest is shown on top.
"use strict";

const drop = document.getElementById("drop");
const choose = document.getElementById("choose");
const results = document.getElementById("results");
const MAX_SHOWN = 100;
// Lenient: an image that cannot be read is part of the answer; browsers log a failure (422) as one of the page
const HEADERS = { "Content-Type": "image/*", Prefer: "handling=lenient" };
let maxUpload = Infinity;
let queue = Promise.resolve();

function add(parent, tag, text, name) {
  const element = document.createElement(tag);
  element.textContent = text; // never as HTML: classes and files can have any name
  if (name) element.className = name;
  parent.append(element);
  return element;
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

async function ask(file) {
  if (file.size > maxUpload) throw new Error(`the file is larger than ${maxUpload / 1e6} MB`);
  let response;
  try {
    response = await fetch("/predict", { method: "POST", body: file, headers: HEADERS });
  } catch {
    throw new Error("no answer from the server");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
  const [prediction] = answer.predictions;
  if (prediction.error) throw new Error(prediction.error);
  return prediction;
}

async function show(file) {
  const card = document.createElement("article");
  const picture = add(card, "img", "");
  const text = add(card, "div", "");
  add(text, "p", file.name, "file");
  const label = add(text, "h2", "…");
  results.prepend(card);
  if (results.children.length > MAX_SHOWN) results.lastChild.remove();
  picture.alt = "";
  picture.onload = () => URL.revokeObjectURL(picture.src);
  picture.onerror = () => picture.replaceWith(Object.assign(add(card, "p", "no preview", "blank")));
  picture.src = URL.createObjectURL(file);
  try {
    const prediction = await ask(file);
    label.textContent = prediction.label;
    if (prediction.unsure) label.className = "unsure";
    const list = add(text, "ul", "");
    for (const [name, p] of Object.entries(prediction.probabilities)) {
      const row = add(list, "li", "");
      add(row, "span", name, "class");
      const bar = add(row, "meter", "");
      bar.value = p;
      bar.setAttribute("aria-label", `${name}: ${percent(p)}`);
      add(row, "span", percent(p), "percent");
    }
  } catch (error) {
    label.textContent = `Not classified: ${error.message}`;
    label.className = "error";
  }
}

function classify(files) {
  for (const file of files) queue = queue.then(() => show(file));
}

choose.addEventListener("change", () => {
  classify([...choose.files]);
  choose.value = ""; // so that the same file can be chosen again
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  // Anywhere on the page, or a file that misses the field would replace the page
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") classify([...event.dataTransfer.files]);
  });
}

fetch("/health")
  .then((response) => response.json())
  .then((health) => {
    maxUpload = health.max_upload;
    const { file, precision, runtime } = health.model;
    document.getElementById("model").textContent = `${file}: ${health.classes} classes, ${precision}, ${runtime}`;
  })
  .catch(() => {
    document.getElementById("model").textContent = "no answer from the server";
  });
