// The form: the wire's members in, the wire's members out. The server is the judge of every value; its problems are
// shown at the field they belong to.

import { $, choose, chosen, h, segments, setIcon } from "./dom.js";
import { inLanguage, number, t } from "./language.js";
import { proportion } from "./limits.js";
import { recall, remember } from "./preferences.js";

const CUSTOM = "custom";
const SAFE = Number.MAX_SAFE_INTEGER;
const SHAPE = 28; // CSS pixels of the longest side of a drawn shape

let limits = null;
let lastSeed = null;

/** Fill the form with what the server allows, then with what was in it last time. */
export function wireForm(known) {
  limits = known;
  inLanguage(drawChoices);
  setRange($("width"), limits.width);
  setRange($("height"), limits.height);
  $("steps").min = limits.steps.minimum;
  $("steps").max = limits.steps.maximum;
  fill({ ...defaults(), ...recall("form") });
  $("request").addEventListener("input", changed);
  $("swap").onclick = swapSides;
  $("seed").addEventListener("input", () => lockSeed($("seed").value.trim() !== ""));
  $("seed-lock").onclick = toggleSeedLock;
  $("seed-random").onclick = () => { $("seed").value = ""; lockSeed(false); changed(); };
  $("seed-last").onclick = () => { $("seed").value = lastSeed; lockSeed(true); changed(); };
}

function defaults() {
  return {
    prompt: "", image_size: limits.size, num_inference_steps: limits.steps.preset, num_images: limits.images.preset,
    output_format: limits.format, acceleration: limits.level,
    enable_prompt_expansion: limits.expansion, enable_safety_checker: limits.safety,
  };
}

function drawChoices() {
  const now = limits && $("sizes").childElementCount ? read() : null;
  $("sizes").replaceChildren(...[...limits.sizes, CUSTOM].map(shape));
  const counts = Array.from({ length: limits.images.maximum - limits.images.minimum + 1 }, (_, i) => limits.images.minimum + i);
  segments($("images"), "images", counts, (count) => number(count));
  segments($("formats"), "format", limits.formats, (format) => format.toUpperCase());
  segments($("levels"), "level", limits.levels, (level) => t(`level.${level}`, {}, level));
  $("sides-rule").textContent = t("size.rule", {
    min: limits.width.minimum, max: limits.width.maximum, multiple: limits.width.multiple,
  });
  if (now) fill(now);
}

function shape(name) {
  const pixels = limits.pixels[name];
  const text = t(`size.${name}`, {}, name);
  const [width, height] = name === CUSTOM ? [1, 1] : proportion(name, limits.pixels);
  const box = h("span", { className: name === CUSTOM ? "shape dashed" : "shape" });
  const unit = SHAPE / (pixels ? largestSide() : Math.max(width, height));
  box.style.width = `${width * unit}px`;
  box.style.height = `${height * unit}px`;
  const whole = pixels ? `${text}, ${pixels.join(" × ")}` : text;
  return h("label", { title: whole },
    h("input", { type: "radio", name: "size", value: name, "aria-label": whole }),
    h("span", { className: "tile" }, h("span", { className: "room" }, box), h("span", {}, /\d+:\d+/.exec(text)?.[0] ?? text)));
}

const largestSide = () => Math.max(...Object.values(limits.pixels).flat());

function setRange(input, { minimum, maximum, multiple, preset }) {
  Object.assign(input, { min: minimum, max: maximum, step: multiple, defaultValue: preset });
}

// --- reading and filling ---

/** The request's members as the form has them; no seed where it is random. */
export function read() {
  const size = chosen("size");
  const seed = $("seed").value.trim();
  return {
    prompt: $("prompt").value,
    image_size: size === CUSTOM ? { width: side("width"), height: side("height") } : size,
    num_inference_steps: $("steps").valueAsNumber,
    num_images: Number(chosen("images")),
    output_format: chosen("format"),
    acceleration: chosen("level"),
    enable_prompt_expansion: $("expansion").checked,
    enable_safety_checker: $("safety").checked,
    ...(isLocked() && seed && { seed: /^\d+$/.test(seed) ? Number(seed) : seed }),
  };
}

const side = (name) => (Number.isNaN($(name).valueAsNumber) ? null : $(name).valueAsNumber);

/** The width and height that will be drawn, as far as the page knows: else their proportion. */
export function shapeOf(request) {
  const size = request.image_size;
  return typeof size === "object" ? [size.width, size.height] : proportion(size, limits.pixels);
}

/** A request as code needs no member that only repeats a default. */
export function brief(request) {
  const known = defaults();
  return Object.fromEntries(Object.entries(request).filter(([name, value]) => name === "prompt" || value !== known[name]));
}

/** Put members into the form; those that are absent stay as they are. A seed is locked, `seed: null` is random. */
export function fill(members) {
  if ("prompt" in members) $("prompt").value = members.prompt;
  if ("image_size" in members) fillSize(members.image_size);
  if (Number.isFinite(members.num_inference_steps)) $("steps").value = members.num_inference_steps;
  choose("images", members.num_images);
  choose("format", members.output_format);
  choose("level", members.acceleration);
  if ("enable_prompt_expansion" in members) $("expansion").checked = members.enable_prompt_expansion;
  if ("enable_safety_checker" in members) $("safety").checked = members.enable_safety_checker;
  if ("seed" in members) {
    $("seed").value = members.seed ?? "";
    lockSeed(members.seed !== null);
  }
  changed();
}

function fillSize(size) {
  const preset = typeof size === "string" ? size
    : Object.keys(limits.pixels).find((name) => limits.pixels[name].join() === [size?.width, size?.height].join());
  if (preset && choose("size", preset)) return;
  choose("size", CUSTOM);
  $("width").value = size?.width ?? "";
  $("height").value = size?.height ?? "";
}

function swapSides() {
  [$("width").value, $("height").value] = [$("height").value, $("width").value];
  changed();
}

function changed() {
  const count = [...$("prompt").value].length; // code points, as the server counts
  $("count").textContent = t("prompt.count", { n: number(count), max: number(limits.prompt) });
  $("count").classList.toggle("over", count > limits.prompt);
  $("steps-shown").textContent = number($("steps").valueAsNumber);
  $("sides").hidden = chosen("size") !== CUSTOM;
  remember("form", { seed: null, ...read() });
}

// --- the seed: locked is sent, unlocked is random each time ---

const isLocked = () => $("seed-lock").getAttribute("aria-pressed") === "true";

function lockSeed(locked) {
  $("seed-lock").setAttribute("aria-pressed", locked);
  setIcon($("seed-lock"), locked ? "lock" : "unlock");
  $("seed").classList.toggle("quiet", !locked);
}

export function toggleSeedLock() {
  if (!isLocked() && !$("seed").value) $("seed").value = lastSeed ?? 1 + Math.floor(Math.random() * (SAFE - 1));
  lockSeed(!isLocked());
  changed();
}

/** What was drawn with; shown in the field while the next one is random. */
export function noteSeed(seed) {
  lastSeed = seed;
  $("seed-last").disabled = false;
  if (!isLocked()) $("seed").value = seed;
}

// --- problems ---

/** Show problems at their fields; returns those that belong to no field. */
export function showProblems(issues) {
  const strangers = issues.filter((issue) => !showAt(issue));
  document.querySelector("[aria-invalid=true]")?.focus();
  return strangers;
}

function showAt({ path, message, hint, own = false }) {
  const field = document.querySelector(`[data-field="${CSS.escape(path[0])}"]`);
  if (!field) return false;
  const place = path.length > 1 && !own ? `${path.slice(1).join(".")}: ` : "";
  const box = field.querySelector(".error");
  box.append(h("span", own ? {} : { lang: "en" }, `${place}${message}${hint ? ` (${hint})` : ""}`));
  box.hidden = false;
  field.closest("details")?.setAttribute("open", "");
  const inputs = [...field.querySelectorAll("input, textarea")];
  const guilty = inputs.find((input) => input.id === path[1]) ?? inputs.find((input) => input.checked) ?? inputs[0];
  guilty.setAttribute("aria-invalid", "true");
  return true;
}

export function clearProblems() {
  for (const box of $("request").querySelectorAll(".error")) {
    box.replaceChildren();
    box.hidden = true;
  }
  for (const input of $("request").querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

/** Show what the page itself can tell before it asks: nothing to draw, half a size, or a seed that a script cannot hold. */
export function showOwnProblems(request) {
  const problems = [];
  const found = (path, message) => problems.push({ path, message, own: true });
  if (!request.prompt.trim()) found(["prompt"], t("prompt.missing"));
  for (const [name, pixels] of Object.entries(request.image_size ?? {})) { // of a preset's name: its letters
    if (pixels === null) found(["image_size", name], `${t(name)}: ${t("size.missing")}`);
  }
  const largest = SAFE - (request.num_images - 1); // each picture has the next seed
  if (request.seed > largest) found(["seed"], t("seed.large", { max: number(largest) }));
  showProblems(problems);
  return problems.length > 0;
}
