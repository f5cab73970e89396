// Which model answers: always in the bar, with what it is and how to take another.

import { getJson } from "./api.js";
import { $, h, paragraph } from "./dom.js";
import { inLanguage, t } from "./language.js";

const ASK_AGAIN_MS = 1500;
const SWITCH = "zturbo serve --model z-image-turbo";

let known = null; // {id, name, version, isNano, description}
let tellKnown = () => {};

export const model = () => known;

/** Ask which model is loaded; `onKnown` runs once it is known, and again when it is another one. */
export function wireModel(onKnown) {
  tellKnown = onKnown;
  $("model").onclick = () => $("model-about").showModal();
  inLanguage(render);
  learn();
}

/** A picture names what drew it. Where that is another version, the server was started anew with another model. */
export function noteVersion(version) {
  if (known && version !== known.version) learn();
}

async function learn() {
  const found = await ask();
  known = found ?? known;
  render();
  if (found) tellKnown();
  else setTimeout(learn, ASK_AGAIN_MS);
}

async function ask() {
  try {
    const [{ id, tags, info }] = (await getJson("/v1/models")).data;
    const version = tags.find((tag) => tag.includes("@"));
    state = version ? "ready" : "loading";
    return version ? { id, version, name: version.split("@")[0], isNano: tags.includes("embedded"), description: info.description } : null;
  } catch {
    state = "unknown";
    return null;
  }
}

let state = "asking";

function render() {
  $("model").dataset.state = state;
  $("model-name").textContent = known?.name ?? t(`model.${state}`);
  $("model-kind").textContent = known?.isNano ? t("model.small") : "";
  $("model-title").textContent = known ? t(known.isNano ? "model.nano.title" : "model.title", known) : t(`model.${state}`);
  $("model-text").replaceChildren(...(known ? about(known) : []));
}

function about({ isNano, description, version }) {
  const words = isNano
    ? [paragraph(t("model.nano.1")), paragraph(t("model.nano.2")), h("pre", {}, h("code", {}, SWITCH))]
    : [h("p", {}, description)];
  return [...words, h("dl", { className: "facts" }, h("div", {}, h("dt", {}, t("model.version")), h("dd", {}, version))), h("p", { className: "quiet" }, t("model.seed"))];
}
