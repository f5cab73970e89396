// Two ways to look closer: one picture at its full size, and two of them with a sliding edge.

import { $, h } from "./dom.js";
import { t } from "./language.js";
import { facts } from "./stage.js";

let urls = [];

function address(blob) {
  urls.push(URL.createObjectURL(blob));
  return urls.at(-1);
}

export function wireViewer() {
  for (const id of ["viewer", "compare"]) {
    $(id).addEventListener("close", () => {
      for (const url of urls) URL.revokeObjectURL(url);
      urls = [];
    });
  }
  $("viewer-zoom").onclick = toggleZoom;
  $("viewer-image").onclick = toggleZoom;
  $("compare-at").oninput = () => $("compare").style.setProperty("--at", `${$("compare-at").value}%`);
}

function toggleZoom() {
  const whole = $("viewer").classList.toggle("natural");
  $("viewer-zoom").setAttribute("aria-pressed", whole);
}

export function showFull(picture) {
  $("viewer-title").textContent = `${picture.width} × ${picture.height}`;
  Object.assign($("viewer-image"), { src: address(picture.image), alt: picture.prompt });
  $("viewer").classList.remove("natural");
  $("viewer-zoom").setAttribute("aria-pressed", false);
  $("viewer").showModal();
}

/** Two pictures over each other: the slider says where the first ends and the second begins. */
export function showPair(first, second) {
  for (const [id, picture] of [["compare-first", first], ["compare-second", second]]) {
    Object.assign($(id), { src: address(picture.image), alt: picture.prompt });
  }
  const pair = $("compare").querySelector(".pair");
  pair.style.setProperty("--ratio", Math.max(first.width / first.height, second.width / second.height));
  $("compare-facts").replaceChildren(...rows(first, second));
  $("compare-at").value = 50;
  $("compare").style.setProperty("--at", "50%");
  $("compare").showModal();
  $("compare-at").focus();
}

function rows(first, second) {
  const named = (picture) => new Map([["prompt", picture.prompt], ...facts(picture).filter(([name]) => !["time", "when"].includes(name))]);
  const [one, two] = [named(first), named(second)];
  const head = h("tr", {}, h("td"), ...["first", "second"].map((name) => h("th", { scope: "col" }, t(`compare.${name}`))));
  return [head, ...[...one.keys()].map((name) => h("tr", { className: one.get(name) === two.get(name) ? "same" : "differs" },
    h("th", { scope: "row" }, t(`fact.${name}`)), h("td", {}, one.get(name)), h("td", {}, two.get(name) ?? "")))];
}
