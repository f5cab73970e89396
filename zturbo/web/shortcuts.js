// Keys. Those of a single letter never act while something is typed, and can be switched off (WCAG 2.1.4).

import { $, h } from "./dom.js";
import { inLanguage, t } from "./language.js";
import { recall, remember } from "./preferences.js";

const isMac = /Mac|iP(hone|ad)/.test(navigator.platform);
export const MODIFIER = isMac ? "⌘" : "Ctrl";

const SINGLE = { "/": "prompt", "?": "help", l: "lock", v: "vary", c: "code", f: "full", d: "save" };
const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
const LISTED = [
  [[MODIFIER, "↵"], "draw"], [["Esc"], "cancel"], [["/"], "prompt"], [["v"], "vary"], [["l"], "lock"], [["c"], "code"],
  [["f"], "full"], [["d"], "save"], [["←", "→"], "walk"], [["?"], "help"],
];

/** `acts` are functions by name: draw, cancel, walk(step), and those of `SINGLE`. */
export function wireShortcuts(acts) {
  $("draw-keys").textContent = `${MODIFIER} ↵`;
  $("single-keys").checked = recall("single-keys") ?? true;
  $("single-keys").onchange = () => remember("single-keys", $("single-keys").checked);
  $("open-help").onclick = () => $("help").showModal();
  inLanguage(() => $("shortcuts").replaceChildren(...LISTED.map(([keys, name]) =>
    h("tr", {}, h("th", { scope: "row" }, t(`keys.${name}`)), h("td", {}, ...keys.map((key) => h("kbd", {}, key)))))));
  document.addEventListener("keydown", (event) => {
    const act = actOf(event, acts);
    if (!act) return;
    event.preventDefault();
    if (!event.repeat || event.key in STEPS) act(); // a key that is held down draws and saves once
  });
}

function actOf(event, acts) {
  if (event.isComposing || document.querySelector("dialog[open]")) return null; // a dialog has its own keys
  if (event.key === "Enter" && (isMac ? event.metaKey : event.ctrlKey)) return acts.draw;
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  if (event.key === "Escape") return acts.cancel;
  if (event.target.closest("input, textarea, select, [role=tab]") || !$("single-keys").checked) return null;
  const step = STEPS[event.key];
  return step ? () => acts.walk(step) : acts[SINGLE[event.key]];
}
