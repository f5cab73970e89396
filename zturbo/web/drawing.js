// One request on the wire: its events to the stage, its pictures into the history.

import { ApiError, blobOf, draw } from "./api.js";
import { toast } from "./dom.js";
import * as history from "./history.js";
import { number, t } from "./language.js";
import { model } from "./model.js";

/** Draw a request and keep the pictures that arrive; resolves to them. `stage` is told of progress and previews. */
export async function drawPictures(request, stage, signal) {
  const started = Date.now();
  const found = [];
  let failure = new Error(t("failed.ended"));
  let mayBeCharged = false; // a request is charged between its last stage and its first picture
  try {
    for await (const event of draw(request, signal)) {
      const kind = event.type.split(".").at(-1);
      mayBeCharged ||= event.stage === "done";
      if (kind === "progress") stage.progress(event);
      if (kind === "partial_image") stage.preview(blobOf(event.b64_json, `image/${event.output_format}`));
      if (kind === "completed") found.push(event);
    }
  } catch (error) {
    failure = error;
  }
  if (mayBeCharged && !(failure instanceof ApiError)) failure = new Error(t(signal.aborted ? "cancelled.late" : "failed.late"));
  if (!found.length) throw failure;
  if (found.length < request.num_images) toast(t("arrived", { n: number(found.length), images: number(request.num_images) }));
  const timings = { total: (Date.now() - started) / 1000 }; // what the server says stands before it
  return Promise.all(found.map((event, i) => keep(pictureOf(event, i, request, { group: started, timings }))));
}

/** A picture as the history keeps it. */
function pictureOf(event, index, request, { group, timings }) {
  return {
    group,
    created: Date.now(),
    request,
    image: blobOf(event.b64_json, event.content_type ?? `image/${event.output_format}`),
    width: event.width,
    height: event.height,
    seed: event.seed,
    prompt: event.revised_prompt ?? event.prompt ?? request.prompt,
    flagged: event.has_nsfw_concepts?.[0] ?? false,
    verdict: event.safety ? { ...event.safety, score: event.safety.scores[index] } : null,
    credits: event.usage?.credits_used,
    timings: event.timings ?? timings,
    model: event.model_version ?? model()?.version,
    level: event.acceleration,
    ...(event.prompt_expansion && { expansion: event.prompt_expansion }),
  };
}

async function keep(picture) {
  try {
    return await history.add(picture);
  } catch (error) { // e.g. the disk is full: it is shown all the same
    toast(t("failed.keep", { reason: error.message }));
    return { ...picture, id: -picture.created - picture.seed };
  }
}
