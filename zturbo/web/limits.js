// What a request may ask for, read from the server's own description: the page holds no second copy of a limit.

import { getJson } from "./api.js";

const OPERATION = "/v1/images/generations";

export async function readLimits() {
  const document = await getJson("/openapi.json");
  const content = document.paths[OPERATION].post.requestBody.content["application/json"];
  const { properties } = resolved(document, content.schema);
  const member = (name) => resolved(document, properties[name] ?? {});
  const ways = (member("image_size").anyOf ?? member("image_size").oneOf ?? []).map((way) => resolved(document, way));
  const sides = ways.find((way) => way.properties);
  const names = ways.find((way) => way.enum);
  return {
    models: valuesOf(member("model")),
    prompt: member("prompt").maxLength,
    sizes: valuesOf(names),
    size: member("image_size").default,
    pixels: pixelsOf(names.description ?? ""),
    width: side(resolved(document, sides.properties.width), sides),
    height: side(resolved(document, sides.properties.height), sides),
    steps: range(member("num_inference_steps")),
    images: range(member("num_images")),
    seed: member("seed").minimum,
    formats: valuesOf(member("output_format")),
    format: member("output_format").default,
    levels: valuesOf(member("acceleration")),
    level: member("acceleration").default,
    expansion: member("enable_prompt_expansion").default,
    safety: member("enable_safety_checker").default,
  };
}

/** The schema that a `$ref` means, with what stands beside it. */
function resolved(document, schema) {
  if (!schema.$ref) return schema;
  const path = schema.$ref.replace(/^#\//, "").split("/");
  return { ...resolved(document, path.reduce((at, name) => at[name], document)), ...schema, $ref: undefined };
}

const valuesOf = (schema) => (schema.enum ?? []).filter((value) => value !== null);

const range = ({ minimum, maximum, default: preset }) => ({ minimum, maximum, preset: preset ?? maximum });

/** Preset -> [width, height]: the description lists them, "square 512x512, ...". */
function pixelsOf(text) {
  return Object.fromEntries([...text.matchAll(/(\w+) (\d+)x(\d+)/g)].map(([, name, width, height]) => [name, [Number(width), Number(height)]]));
}

/** The published description says "a multiple of 32" in words only. */
function side(schema, parent) {
  const words = /multiple of (\d+)/.exec(`${schema.description ?? ""} ${parent.description ?? ""}`);
  return { ...range(schema), multiple: schema.multipleOf ?? Number(words?.[1] ?? 1) };
}

/** A preset's width and height, or at least their proportion: its name says it ("landscape_16_9"). */
export function proportion(name, pixels) {
  if (pixels[name]) return pixels[name];
  const [, way, long = 1, short = 1] = /^(square|portrait|landscape)(?:_(\d+)_(\d+))?/.exec(name) ?? [];
  return way === "portrait" ? [Number(short), Number(long)] : [Number(long), Number(short)];
}
