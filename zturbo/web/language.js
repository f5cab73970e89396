// English and Chinese. Elements say what they hold: `data-text` (their text), `data-label` (aria-label and tooltip),
// `data-hint` (placeholder).

import { remember } from "./preferences.js";
import { TEXTS } from "./texts.js";

const listeners = [];

export const language = () => (document.documentElement.lang.startsWith("zh") ? "zh" : "en");

/** The text of a key, with {names} filled in; `fallback` where there is none. */
export function t(name, values = {}, fallback = name) {
  const text = TEXTS[language()][name] ?? fallback;
  return text.replace(/\{(\w+)\}/g, (_, one) => values[one]);
}

export function number(value, options = {}) {
  return new Intl.NumberFormat(document.documentElement.lang, options).format(value);
}

export const seconds = (value) => t("seconds", { n: number(value, { maximumFractionDigits: value < 10 ? 2 : 1 }) });

export function when(moment) {
  return new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" }).format(moment);
}

/** Run something now, and again whenever the language changes. */
export function inLanguage(work) {
  listeners.push(work);
  work();
}

export function setLanguage(code) {
  document.documentElement.lang = code === "zh" ? "zh-Hans" : "en";
  remember("language", code);
  for (const work of listeners) work();
}

export function translatePage() {
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = t(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-label]")) label(element, element.dataset.label);
}

/** Name an element for screen readers, and as a tooltip. */
export function label(element, name) {
  element.dataset.label = name;
  element.setAttribute("aria-label", t(name));
  if (element.tagName === "BUTTON") element.title = t(name);
}
