// The playground: puts the parts together. Read `run` first: it is the story of one request in the browser.

import { refreshBalance, showAccount, wireAccount } from "./account.js";
import { ApiError } from "./api.js";
import { showCode, wireCode } from "./code.js";
import { $, h, say, setIcon, toast, wireDialogs } from "./dom.js";
import { drawPictures } from "./drawing.js";
import { wireDrop } from "./drop.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import { inLanguage, label, language, number, seconds, setLanguage, t, translatePage } from "./language.js";
import { readLimits } from "./limits.js";
import { model, noteVersion, wireModel } from "./model.js";
import { recall, remember } from "./preferences.js";
import { wireShortcuts } from "./shortcuts.js";
import { backToDrawing, endDrawing, showDrawing, showEmpty, showPictures } from "./stage.js";
import { TEXTS } from "./texts.js";
import { showFull, showPair, wireViewer } from "./viewer.js";

const MODEL = "alibaba/z-image-turbo"; // until the server has said what it calls it
const THEMES = { system: "auto", light: "sun", dark: "moon" };
const EXAMPLES = [
  { text: "example.1", image_size: { width: 1440, height: 512 } },
  { text: "example.2", image_size: "landscape_4_3" },
  { text: "example.3", image_size: "square" },
];

let running = null; // the AbortController of the request that runs
let onStage = null; // the picture that is shown
let first = null; // the picture that waits for a second one to be compared with
let sent = ""; // the prompt that was drawn last

// --- one request ---

/** Draw what the form says, or with another prompt what else it says: check, ask, watch, keep, show. */
async function run(other = {}) {
  if (!isFree()) return;
  const request = checked(other);
  if (request === null) return;
  sent = request.prompt;
  running = new AbortController();
  busy(true);
  try {
    const pictures = await drawPictures(request, showDrawing(request.num_images, form.shapeOf(request)), running.signal);
    form.noteSeed(pictures[0].seed);
    noteVersion(pictures[0].model);
    pictures.forEach(gallery.added);
    show(pictures, 0);
    const count = pictures.length === 1 ? t("said.pictures.1") : t("said.pictures", { n: number(pictures.length) });
    say(t("said.done", { n: count, time: seconds(pictures[0].timings.total) }));
  } catch (error) {
    showAgain();
    showFailure(error);
  } finally {
    running = null;
    endDrawing();
    busy(false);
    refreshBalance();
  }
}

/** Put members into the form and draw them; a prompt that was typed and is not drawn yet stays in it. */
function runWith({ prompt, ...settings }) {
  if (!isFree()) return;
  const typed = $("prompt").value.trim();
  const isDrawn = [sent.trim(), onStage?.request.prompt.trim() ?? "", ""].includes(typed);
  form.fill(isDrawn ? { prompt, ...settings } : settings);
  run({ prompt });
}

function isFree() {
  if (running) toast(t("busy"));
  return running === null && !$("draw").disabled;
}

/** The form's request; null where the page itself can tell that it is none, and has. */
function checked(other = {}) {
  const request = { model: model()?.id ?? MODEL, ...form.read(), ...other };
  form.clearProblems();
  return form.showOwnProblems(request) ? null : request;
}

function busy(on) {
  const hadFocus = document.activeElement?.closest(on ? "#draw, #empty, #easel, #about" : "#cancel"); // will be hidden
  $("draw").hidden = on;
  $("cancel").hidden = !on;
  if (hadFocus) $(on ? "cancel" : "draw").focus();
  if (on && $("stage").getBoundingClientRect().top > innerHeight / 2) $("stage").scrollIntoView();
}

/** What Escape leaves: the choice of a second picture, else the request that runs. */
function leave() {
  if (first) compareWith(null);
  else running?.abort();
}

/** Draw and Cancel take each other's place: neither may be pressed by the other's double click, or by a key held down. */
function wireSend() {
  const isOneOfThem = (event) => event.target.closest("#draw, #cancel") !== null;
  const line = $("draw").parentElement;
  line.addEventListener("click", (event) => {
    if (!isOneOfThem(event) || event.detail < 2) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  line.addEventListener("keydown", (event) => {
    if (event.repeat && isOneOfThem(event) && ["Enter", " "].includes(event.key)) event.preventDefault();
  });
}

function showFailure(error) {
  if (error.name === "AbortError") {
    toast(t("cancelled"));
    return;
  }
  if (!(error instanceof ApiError)) {
    tell([error instanceof TypeError ? t("failed.offline") : error.message]);
    return;
  }
  const strangers = form.showProblems(error.issues);
  if (strangers.length || !error.issues.length) {
    const retry = error.retryAfter && t("failed.again", { n: number(error.retryAfter) });
    const words = strangers.length ? strangers.map((one) => `${one.path.join(".")}: ${one.message}`) : [error.message];
    tell([...words.map((text) => h("span", { lang: "en" }, text)), retry], error.requestId);
  }
  if (error.status === 401) showAccount();
}

/** An error that belongs to no field; lines are texts of the page, or elements. */
function tell(lines, requestId = null) {
  $("form-error").replaceChildren(...lines.filter(Boolean).map((line) => (line instanceof Node ? line : h("span", {}, line))),
    ...(requestId ? [h("small", {}, t("request.id", { id: requestId }))] : []));
  $("form-error").hidden = false;
}

// --- the stage ---

function show(pictures, index) {
  const before = document.activeElement; // on the stage it is drawn anew, and so is the button that had the focus
  const hadFocus = $("stage").contains(before);
  onStage = pictures[index];
  showPictures(pictures, index, acts);
  gallery.mark(onStage.id);
  if (hadFocus) ($(before.id) ?? $("easel").querySelectorAll("button")[index]).focus();
}

/** What was on the stage before. */
function showAgain() {
  if (!onStage) {
    showEmpty();
    return;
  }
  const group = gallery.groupOf(onStage); // without it, if it could not be kept
  if (group.includes(onStage)) show(group, group.indexOf(onStage));
  else show([onStage], 0);
}

function showKept(picture) {
  const group = gallery.groupOf(picture);
  show(group, group.indexOf(picture));
}

/** What a click on a picture of the history does. */
function showOne(picture) {
  if (first) {
    compareWith(picture);
    return;
  }
  showKept(picture);
  if ($("stage").getBoundingClientRect().top < 0 || $("stage").getBoundingClientRect().top > innerHeight / 2) $("stage").scrollIntoView();
}

/** What can be done with a picture. */
const acts = {
  choose: show,
  full: showFull,
  save: download,
  again(picture) {
    runWith({ ...picture.request, num_images: 1, seed: picture.seed });
  },
  vary(picture) {
    runWith({ ...picture.request, num_images: 1, seed: null });
  },
  edit(picture) {
    form.fill({ ...picture.request, num_images: 1, seed: picture.seed });
    $("prompt").focus();
  },
  compare(picture) {
    first = picture;
    $("comparing").hidden = false;
    $("history").scrollIntoView({ block: "nearest" });
    say(t("compare.pick"));
    $("pictures").querySelector("button:not([aria-current])")?.focus();
  },
  code: (picture) => showCode(form.brief({ ...picture.request, num_images: 1, seed: picture.seed })),
  async remove(picture) {
    if (await isRemoved(() => gallery.remove([picture]))) toast(t("removed"));
  },
};

/** Whether the browser forgot pictures; then nothing is on the stage, and nothing waits to be compared. */
async function isRemoved(remove) {
  try {
    await remove();
  } catch (error) {
    toast(t("failed.remove", { reason: error.message }));
    return false;
  }
  onStage = null;
  compareWith(null);
  showEmpty();
  $("stage").focus(); // the buttons have gone
  return true;
}

function compareWith(second) {
  const one = first;
  first = null;
  $("comparing").hidden = true;
  if (second) showPair(one, second);
}

function download(picture) {
  const words = picture.request.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  const suffix = picture.image.type === "image/jpeg" ? "jpg" : picture.image.type.slice("image/".length);
  const url = URL.createObjectURL(picture.image);
  h("a", { href: url, download: `${words.join("-").slice(0, 48)}-${picture.seed}.${suffix}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser reads it after the click
}

/** Settings out of a dropped file, into the form. A file has no word for expansion but the text that was drawn. */
function takeSettings(found, name) {
  form.fill({
    prompt: found.prompt,
    ...(found.width && { image_size: { width: found.width, height: found.height } }),
    num_inference_steps: found.steps,
    acceleration: found.acceleration,
    seed: found.seed ?? null,
    enable_prompt_expansion: "drawn_prompt" in found,
    num_images: 1,
  });
  const other = found.model_version && model() && found.model_version !== model().version;
  toast([t("open.done", { name }), other ? t("open.version", { version: found.model_version }) : ""].join(" "));
  $("prompt").focus();
}

// --- the rest of the page ---

function wireExamples() {
  $("examples").replaceChildren(...EXAMPLES.map(({ text, image_size }) => {
    const prompt = model()?.isNano ? TEXTS.en[text] : t(text); // nano reads English only
    const [width, height] = form.shapeOf({ image_size });
    const box = h("span", { className: "shape" });
    box.style.width = `${Math.sqrt(width / height) * 26}px`;
    box.style.height = `${Math.sqrt(height / width) * 26}px`;
    const draw = () => runWith({ prompt, image_size });
    return h("li", {}, h("button", { type: "button", onclick: draw }, h("span", { className: "room" }, box), h("span", {}, prompt)));
  }));
  $("empty-nano").hidden = !model()?.isNano;
}

function wireAppearance() {
  let theme = recall("theme") ?? "system";
  const apply = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    setIcon($("theme"), THEMES[theme]);
    label($("theme"), `theme.${theme}`);
  };
  $("theme").onclick = () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    remember("theme", theme);
    apply();
    say(t(`theme.${theme}`));
  };
  apply();
}

function wireLanguage() {
  inLanguage(() => {
    translatePage();
    $("language").textContent = language() === "zh" ? "English" : "中文";
    $("language").lang = language() === "zh" ? "en" : "zh-Hans";
  });
  $("language").onclick = () => setLanguage(language() === "zh" ? "en" : "zh");
}

function wireKeys() {
  const withPicture = (act) => () => onStage && act(onStage);
  wireShortcuts({
    draw: () => run(),
    cancel: leave,
    prompt: () => $("prompt").focus(),
    help: () => $("help").showModal(),
    lock: form.toggleSeedLock,
    vary: withPicture(acts.vary),
    code: () => $("open-code").click(),
    full: withPicture(acts.full),
    save: withPicture(acts.save),
    walk(step) {
      const next = gallery.neighbour(step);
      if (next) showOne(next);
    },
  });
}

async function start() {
  wireAppearance();
  wireLanguage();
  wireDialogs();
  wireViewer();
  wireCode();
  wireKeys();
  wireDrop(takeSettings);
  $("more").open = matchMedia("(min-width: 900px)").matches;
  $("request").onsubmit = (event) => { event.preventDefault(); run(); };
  $("cancel").onclick = () => running?.abort();
  $("back-to-drawing").onclick = () => { backToDrawing(); $("stage").focus(); };
  wireSend();
  $("empty-model").onclick = () => $("model").click();
  $("stop-comparing").onclick = () => compareWith(null);
  $("clear").onclick = removeAll;
  $("open-code").onclick = showFormAsCode;
  wireAccount(); // first: a key that breaks every request must be one that can be forgotten
  try {
    form.wireForm(await readLimits());
  } catch (error) {
    tell([t("limits.missing", { reason: error.message })]);
    $("draw").disabled = $("open-code").disabled = true; // a request is made of them
    return;
  }
  inLanguage(wireExamples);
  wireModel(wireExamples);
  await gallery.wireGallery(showOne);
  if (!running && !onStage) { // nobody was faster than the history
    if (gallery.newest()) showKept(gallery.newest());
    else showEmpty();
  }
  document.documentElement.dataset.ready = "";
}

function showFormAsCode() {
  const request = checked();
  if (request) showCode(form.brief(request));
}

async function removeAll() {
  const count = $("pictures").childElementCount;
  if (!confirm(t("history.sure", { n: number(count) }))) return;
  await isRemoved(gallery.removeAll);
}

start();
