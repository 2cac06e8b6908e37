"use strict";
const overlays = JSON.parse(document.getElementById("overlays").textContent);
const viewer = document.getElementById("viewer");
const body = document.getElementById("viewer-body");
const SVG = "http://www.w3.org/2000/svg";

function open(title, ...content) {
  document.getElementById("viewer-title").textContent = title;
  body.replaceChildren(...content);
  viewer.showModal();
}

function drawn(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

function colour(k, classes, truth) {
  return overlays.colours[classes > 1 ? k % overlays.colours.length : truth ? 0 : 1];
}

function picture(image, predicted, label) {
  const [width, height] = image.size;
  const view = drawn("svg", { viewBox: `0 0 ${2 * width} ${2 * height}`, role: "img", "aria-label": label });
  drawn("image", { href: image.uri, width: 2 * width, height: 2 * height }, view);
  for (const [paths, truth] of [[image.truth, true], [predicted, false]]) {
    paths.forEach((d, k) => d && drawn("path", {
      d, fill: "none", stroke: colour(k, paths.length, truth), "stroke-width": 2, "vector-effect": "non-scaling-stroke",
      ...(truth && paths.length > 1 ? { "stroke-dasharray": "5 3" } : {}),
    }, view));
  }
  return view;
}

function subject([name, dice, paths], position, dataset, title) {
  const image = overlays.images[`${dataset}|${name}`];
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = `${position}: ${name}, Dice ${dice.toFixed(1)} %`;
  const label = `${title}, ${caption.textContent}: contours of truth and prediction on the image ${image.name}`;
  figure.append(picture(image, paths, label), caption);
  return figure;
}

function key(classes) {
  const line = document.createElement("p");
  line.className = "key";
  const entries = classes.length > 1
    ? [...classes.map((name, k) => [name, colour(k, 2, true), ""]), ["dashed: truth", "#fff", "5 3"], ["solid: prediction", "#fff", ""]]
    : [["truth", colour(0, 1, true), ""], ["prediction", colour(0, 1, false), ""]];
  for (const [name, stroke, dashes] of entries) {
    const entry = document.createElement("span");
    const mark = drawn("svg", { viewBox: "0 0 32 12", "aria-hidden": "true" });
    drawn("path", { d: "M2 6h28", stroke, "stroke-width": 3, "stroke-dasharray": dashes }, mark);
    entry.append(mark, ` ${name}`);
    line.append(entry);
  }
  return line;
}

for (const button of document.querySelectorAll(".cell")) {
  button.setAttribute("aria-haspopup", "dialog");
  button.addEventListener("click", () => {
    const dataset = button.dataset.cell.split("|")[0];
    const three = overlays.cells[button.dataset.cell] || [];
    const grid = document.createElement("div");
    grid.className = "subjects";
    const names = three.length === 1 ? ["only"] : three.length === 2 ? ["best", "worst"] : overlays.shown;
    grid.append(...three.map((one, i) => subject(one, names[i], dataset, button.dataset.title)));
    const remark = document.createElement("p");
    remark.textContent = overlays.remark;
    open(`${button.dataset.title}: ${button.textContent.trim()}`, grid, key(overlays.classes[dataset]), remark);
  });
}

for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    const image = button.querySelector("img").cloneNode();
    image.loading = "eager";
    // Wider than a phone, so that enlarged means larger; scrolls by finger and by arrow keys.
    const frame = document.createElement("div");
    frame.className = "zoomed";
    frame.tabIndex = 0;
    frame.append(image);
    open(button.closest("figure").querySelector("figcaption").textContent, frame);
  });
}

function value(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = text === "" || text === "–" ? NaN : Number(text);
  return { text, number };
}

function order(a, b, descending) {
  if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
  const both = !Number.isNaN(a.number) && !Number.isNaN(b.number);
  const difference = both ? a.number - b.number : a.text.localeCompare(b.text);
  return descending ? -difference : difference;
}

for (const heading of document.querySelectorAll(".sortable thead th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const table = heading.closest("table");
    const descending = heading.getAttribute("aria-sort") ? heading.getAttribute("aria-sort") === "ascending" : heading.classList.contains("number");
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => order(value(a, heading.cellIndex), value(b, heading.cellIndex), descending));
    table.tBodies[0].append(...rows);
  });
}

viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
});
