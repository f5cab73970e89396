// The dialog that shows a request as code.

import { $, h, toast } from "./dom.js";
import { t } from "./language.js";
import { recall, remember } from "./preferences.js";
import { LANGUAGES } from "./snippets.js";

let request = null;

export function wireCode() {
  $("code-tabs").replaceChildren(...Object.entries(LANGUAGES).map(([id, { name }]) =>
    h("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": "code-panel", onclick: () => select(id) }, name)));
  $("code-tabs").onkeydown = walk;
  $("copy-code").onclick = copy;
}

export function showCode(wanted) {
  request = wanted;
  const last = recall("code");
  select(last in LANGUAGES ? last : "curl");
  $("code").showModal();
}

function select(id) {
  remember("code", id);
  for (const tab of $("code-tabs").children) {
    const on = tab.id === `tab-${id}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
  }
  $("code-panel").setAttribute("aria-labelledby", `tab-${id}`);
  $("code-text").textContent = LANGUAGES[id].write(location.origin, request);
}

/** Arrow keys walk through the tabs, as the WAI-ARIA pattern has it. */
function walk(event) {
  const tabs = [...$("code-tabs").children];
  const at = tabs.indexOf(document.activeElement);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const tab = tabs[(next + tabs.length) % tabs.length];
  tab.click();
  tab.focus();
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("code-text").textContent);
    toast(t("copied"));
  } catch {
    getSelection().selectAllChildren($("code-text")); // no clipboard without https, except on this computer
    toast(t("copy.failed"));
  }
}
