// The few lines that spare a framework. Text is only ever set as text: the policy of the page forbids markup from strings.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element; `props` are properties (`className`, `onclick`) or, with a hyphen or in SVG, attributes. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (element.namespaceURI === SVG || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A paragraph; what stands between backticks is code. */
export function paragraph(text) {
  return h("p", {}, ...text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part)));
}

/** Tell a screen reader, without showing. */
export function say(text) {
  $("live").textContent = text;
}

let toastTimer = 0;

/** Show and tell something for a few seconds. */
export function toast(text) {
  const box = $("toast");
  const top = document.elementFromPoint(0, 0)?.closest("dialog[open]"); // its backdrop covers the page, which is inert
  (top ?? document.body).append(box);
  box.textContent = "";
  box.hidden = false;
  requestAnimationFrame(() => { box.textContent = text; }); // screen readers tell only what changes while it is there
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { box.hidden = true; }, 4000);
}

/** Close buttons, and a click beside a dialog, close it. */
export function wireDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.querySelector(".close").onclick = () => dialog.close();
    dialog.addEventListener("mousedown", (event) => {
      if (event.target === dialog && isBeside(dialog.getBoundingClientRect(), event)) dialog.close();
    });
  }
}

/** A dialog's padding, gaps and scrollbar are the dialog itself, as its backdrop is: only the place tells. */
const isBeside = ({ left, right, top, bottom }, { clientX, clientY }) =>
  clientX < left || clientX > right || clientY < top || clientY > bottom;

/** The radio buttons of a segmented choice; `label` makes each value's text. */
export function segments(box, name, values, label, chosen) {
  box.replaceChildren(...values.map((value) =>
    h("label", {}, h("input", { type: "radio", name, value: String(value), checked: value === chosen }), h("span", {}, label(value)))));
}

export function chosen(name) {
  return document.querySelector(`input[name="${name}"]:checked`)?.value;
}

export function choose(name, value) {
  const radio = [...document.getElementsByName(name)].find((one) => one.value === String(value));
  if (radio) radio.checked = true;
  return Boolean(radio);
}
