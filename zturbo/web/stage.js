// The middle of the page: the picture that is being drawn, or one of those that were.

import { $, h, icon, say } from "./dom.js";
import { inLanguage, number, seconds, t, when } from "./language.js";

const urls = new Set(); // object URLs on the stage; freed when it changes

let again = () => {}; // draws the stage anew, in another language
let drawing = null; // frames of the request that runs, while it does

inLanguage(() => again());

function address(blob) {
  const url = URL.createObjectURL(blob);
  urls.add(url);
  return url;
}

function clean() {
  for (const url of urls) URL.revokeObjectURL(url);
  urls.clear();
  $("empty").hidden = true;
  $("easel").hidden = false;
  $("about").hidden = true;
  $("back-to-drawing").hidden = drawing === null;
}

export function showEmpty() {
  clean();
  again = () => {};
  $("easel").hidden = true;
  $("empty").hidden = false;
}

function frame([width, height], ...children) {
  const figure = h("figure", { className: "frame" }, ...children);
  figure.style.setProperty("--ratio", width / height);
  return figure;
}

// --- while it is drawn ---

/** Empty frames for a request; returns what to tell as it goes on, until `endDrawing`. */
export function showDrawing(images, shape) {
  const frames = Array.from({ length: images }, () => frame(shape, h("div", { className: "waiting" }), h("img", { className: "preview", alt: "" })));
  drawing = frames;
  backToDrawing();
  $("progress").hidden = false;
  const steps = frames.map(() => 0); // done of each picture: the server may draw them side by side
  let current = 0;
  let begun = false;
  progress(t("stage.sent"), "", null);
  return {
    progress(event) {
      if (event.stage === "queued") {
        queued(event);
        return;
      }
      current = event.image;
      steps[current] = event.step;
      const done = steps.reduce((sum, one) => sum + one) / (event.steps * images);
      progress(t(`stage.${event.stage}`, {}, event.stage), event.stage === "denoise" ? count(event) : "", done);
      frames.forEach((one, i) => one.classList.toggle("at-work", i === current));
      frames[current].style.setProperty("--blur", 1 - event.step / event.steps);
      if (event.stage === "denoise" && !begun) say(t("said.drawing"));
      begun ||= event.stage === "denoise";
    },
    preview(blob) {
      frames[current].querySelector("img").src = address(blob);
      frames[current].classList.add("seen");
    },
  };
}

/** Show what is being drawn, after another picture was looked at meanwhile. */
export function backToDrawing() {
  if (!drawing) return;
  clean();
  again = () => {};
  $("easel").replaceChildren(...drawing);
  $("easel").dataset.images = drawing.length;
  $("back-to-drawing").hidden = true;
}

export function endDrawing() {
  drawing = null;
  $("progress").hidden = true;
  $("back-to-drawing").hidden = true;
}

/** In the queue: how many are before, and for how long, as far as the server says. */
function queued({ position, expected_s }) {
  const name = position ? t("stage.ahead", { n: number(position) }) : t("stage.queued");
  const wait = expected_s ? t("stage.about", { time: seconds(Math.ceil(expected_s)) }) : "";
  progress(name, wait, null);
  say(`${name}. ${wait}`);
}

function count({ image, images, step, steps }) {
  const values = { image: number(image + 1), images: number(images), step: number(step), steps: number(steps) };
  return t(images > 1 ? "step.image" : "step", values);
}

/** `done` from 0 to 1, or null where nobody knows. */
function progress(name, counted, done) {
  $("stage-name").textContent = name;
  $("stage-count").textContent = counted;
  const bar = $("progress").querySelector("[role=progressbar]");
  bar.classList.toggle("unknown", done === null);
  bar.firstElementChild.style.width = `${(done ?? 0) * 100}%`;
  if (done === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", Math.round(done * 100));
  bar.setAttribute("aria-valuetext", `${name} ${counted}`);
}

// --- when it was drawn ---

/** Show pictures of one request, and everything about one of them. `acts` are the buttons' functions, by name. */
export function showPictures(pictures, index, acts) {
  clean();
  again = () => showPictures(pictures, index, acts);
  $("easel").replaceChildren(...pictures.map((picture, i) => {
    const pressed = pictures.length > 1 ? { "aria-pressed": String(i === index) } : {};
    const image = h("img", { src: address(picture.image), alt: picture.prompt, width: picture.width, height: picture.height });
    const open = () => (i === index ? acts.full(picture) : acts.choose(pictures, i));
    const name = i === index ? t("act.full") : t("history.picture", picture);
    return frame([picture.width, picture.height],
      h("button", { type: "button", onclick: open, "aria-label": name, title: i === index ? t("act.full") : "", ...pressed }, image),
      picture.flagged ? h("figcaption", {}, t("about.flagged")) : null);
  }));
  $("easel").dataset.images = pictures.length;
  $("about").hidden = false;
  $("about").replaceChildren(...about(pictures[index], acts));
}

function about(picture, acts) {
  const expanded = picture.request.prompt !== picture.prompt;
  const score = picture.verdict?.score === undefined ? null : t("about.score", {
    score: number(picture.verdict.score, { maximumFractionDigits: 3 }), threshold: number(picture.verdict.threshold, { maximumFractionDigits: 3 }),
  });
  return [
    picture.flagged ? h("div", { className: "notice warn" }, h("strong", {}, t("about.flagged")), h("p", {}, t("about.flagged.text")), score && h("p", {}, score)) : null,
    h("h3", { id: "about-title", className: "quiet" }, t(expanded ? "about.expanded" : "about.prompt")),
    h("p", { className: "prompt", dir: "auto" }, picture.prompt),
    expanded ? h("details", {}, h("summary", {}, t("about.asked"), icon("down")), h("p", { className: "quiet", dir: "auto" }, picture.request.prompt)) : null,
    picture.expansion?.applied === false ? h("p", { className: "quiet" }, h("small", {}, t("about.unexpanded"), " ", h("span", { lang: "en" }, picture.expansion.reason))) : null,
    actions(picture, acts),
    h("dl", { className: "facts" }, ...facts(picture).flatMap(([name, value]) => [h("div", {}, h("dt", {}, t(`fact.${name}`)), h("dd", {}, value))])),
    picture.timings?.total ? times(picture.timings) : null,
  ].filter(Boolean);
}

function actions(picture, acts) {
  const button = (name, sign, title = "") =>
    h("button", { type: "button", className: "ghost bordered", onclick: () => acts[name](picture), title, id: `act-${name}` }, icon(sign), h("span", {}, t(`act.${name}`)));
  const small = (name, sign) =>
    h("button", { type: "button", className: "ghost bordered icon", onclick: () => acts[name](picture), title: t(`act.${name}`), "aria-label": t(`act.${name}`), id: `act-${name}` }, icon(sign));
  return h("div", { className: "actions" },
    button("save", "save"), button("vary", "vary"), button("again", "back", t("act.again.about")), button("compare", "compare"),
    button("edit", "edit"), button("code", "code"), small("full", "full"), small("remove", "bin"));
}

/** What there is to tell about a picture, in order: [name, text]. */
export function facts(picture) {
  const { request } = picture;
  const level = picture.level ?? request.acceleration; // which really drew, where the server has said so
  const known = {
    seed: String(picture.seed),
    size: `${picture.width} × ${picture.height}`,
    steps: request.num_inference_steps === undefined ? null : number(request.num_inference_steps),
    level: level && t(`level.${level}`, {}, level),
    format: request.output_format?.toUpperCase(),
    credits: picture.credits === undefined ? null : number(picture.credits),
    time: picture.timings?.total ? seconds(picture.timings.total) : null,
    model: picture.model?.replace(/(@\w{8})\w+/, "$1"),
    when: when(picture.created),
  };
  return Object.entries(known).filter(([, value]) => value);
}

/** Where the time went: a bar of parts, each named with its seconds. */
function times({ total, ...stages }) {
  const parts = Object.entries(stages).filter(([, value]) => value >= total / 100);
  const bar = h("div", { className: "parts", "aria-hidden": "true" }, ...parts.map(([, value]) => {
    const part = h("span");
    part.style.flexGrow = value / total;
    return part;
  }));
  const names = parts.map(([name, value]) => h("li", {}, `${t(`time.${name}`, {}, name)} `, h("b", { className: "number" }, seconds(value))));
  return h("div", { className: "times" }, bar, h("ul", {}, ...names));
}
