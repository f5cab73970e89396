// The history: this browser's pictures as a wall of thumbnails, newest first.

import { $, h } from "./dom.js";
import * as history from "./history.js";
import { inLanguage, number, t } from "./language.js";

let pictures = [];
let urls = new Map(); // picture id -> object URL
let shown = null; // id of the picture on the stage
let choose = () => {};

export async function wireGallery(onChoose) {
  choose = onChoose;
  const found = await history.all();
  const known = new Set(pictures.map((one) => one.id)); // drawn meanwhile
  pictures = [...pictures, ...found.filter((one) => !known.has(one.id))];
  inLanguage(render);
}

export const newest = () => pictures[0];

/** The neighbour of the picture on the stage: 1 is older, -1 is newer. */
export function neighbour(step) {
  const at = pictures.findIndex((one) => one.id === shown);
  return pictures[at + step];
}

/** Pictures that were drawn by one request, in its order. */
export function groupOf(picture) {
  return pictures.filter((one) => one.group === picture.group).toReversed();
}

export function added(picture) {
  pictures = [picture, ...pictures].slice(0, history.MAX_PICTURES);
  render();
}

/** Out of the history and off the wall; where the browser refuses, neither. */
export async function remove(gone) {
  await history.remove(gone.map((one) => one.id));
  pictures = pictures.filter((one) => !gone.includes(one));
  render();
}

/** Those of this wall: what other tabs drew since is theirs. */
export const removeAll = () => remove(pictures);

export function mark(id) {
  shown = id;
  for (const button of $("pictures").querySelectorAll("button")) {
    if (Number(button.dataset.id) === id) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function render() {
  const focused = document.activeElement?.closest("#pictures button")?.dataset.id; // it is made anew
  const alive = new Set(pictures.map((one) => one.id));
  for (const [id, url] of urls) if (!alive.has(id)) URL.revokeObjectURL(url);
  urls = new Map(pictures.map((one) => [one.id, urls.get(one.id) ?? URL.createObjectURL(one.image)]));
  $("pictures").replaceChildren(...pictures.map(thumbnail));
  $("history-count").textContent = pictures.length ? number(pictures.length) : "";
  $("history-empty").hidden = pictures.length > 0;
  $("clear").hidden = pictures.length === 0;
  mark(shown);
  if (focused) $("pictures").querySelector(`[data-id="${focused}"]`)?.focus();
}

function thumbnail(picture) {
  const image = h("img", { src: urls.get(picture.id), alt: "", width: picture.width, height: picture.height, loading: "lazy", decoding: "async" });
  const name = t("history.picture", picture);
  const item = h("li", {}, h("button", { type: "button", onclick: () => choose(picture), title: picture.prompt, "aria-label": name, "data-id": picture.id }, image));
  item.style.setProperty("--ratio", picture.width / picture.height);
  return item;
}
