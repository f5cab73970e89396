// The settings inside a picture's file. Whoever made the file wrote them, so nothing in them is trusted: they are put
// into the form as text and numbers, and the server judges them like anything else that is typed there.

const MAX_BYTES = 64 * 2 ** 20;
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const latin1 = new TextDecoder("latin1");
const utf8 = new TextDecoder();

/** {prompt, drawn_prompt?, seed, width, height, steps, acceleration, model, model_version}, as far as the file says; or null. */
export async function readSettings(file) {
  if (file.size > MAX_BYTES) return null;
  const bytes = new Uint8Array(await file.arrayBuffer());
  const isPng = PNG.every((byte, i) => bytes[i] === byte);
  const texts = isPng ? await pngTexts(bytes) : {};
  const json = isPng ? texts.zturbo : xmpSettings(bytes);
  return ofJson(json) ?? (texts.parameters ? ofInfotext(texts.parameters) : null);
}

/** The iTXt and tEXt chunks of a PNG file: keyword -> text. Stops at what is no whole chunk. */
async function pngTexts(bytes) {
  const view = new DataView(bytes.buffer);
  const texts = {};
  for (let at = PNG.length; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = latin1.decode(bytes.subarray(at + 4, at + 8));
    if (type === "IEND" || at + 12 + length > bytes.length) break;
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === "iTXt" || type === "tEXt") {
      const [keyword, text] = await (type === "iTXt" ? international(data) : plain(data));
      texts[keyword] = text;
    }
    at += 12 + length;
  }
  return texts;
}

function plain(data) {
  const end = data.indexOf(0);
  return [latin1.decode(data.subarray(0, end)), latin1.decode(data.subarray(end + 1))];
}

/** Keyword, 0, compressed, method, language, 0, translated keyword, 0, text: PNG specification, 11.3.3.4. */
async function international(data) {
  const keyword = data.indexOf(0);
  const language = data.indexOf(0, keyword + 3);
  const translated = data.indexOf(0, language + 1);
  const text = data.subarray(translated + 1);
  return [latin1.decode(data.subarray(0, keyword)), utf8.decode(data[keyword + 1] ? await inflated(text) : text)];
}

async function inflated(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  const parts = [];
  let size = 0;
  for (let part = await reader.read(); !part.done && size <= 2 ** 20; part = await reader.read()) {
    parts.push(part.value);
    size += part.value.length;
  }
  reader.cancel().catch(() => {});
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** JPEG and WebP carry the same JSON in their XMP packet. */
function xmpSettings(bytes) {
  const found = /<zturbo:settings>([^<]*)<\/zturbo:settings>/.exec(utf8.decode(bytes));
  return found?.[1].replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

function ofJson(text) {
  try {
    const found = JSON.parse(text);
    return typeof found?.prompt === "string" ? found : null;
  } catch {
    return null;
  }
}

/** The prompt, and a last line "Steps: 8, Seed: 1, Size: 512x512, ...", as other programs write it too. */
export function ofInfotext(text) {
  const lines = text.split("\n");
  const last = lines.findLastIndex((line) => line.startsWith("Steps: "));
  if (last < 0) return null;
  const value = (name) => new RegExp(`(?:^|, )${name}: ([^,]+)`).exec(lines[last])?.[1];
  const [width, height] = (value("Size") ?? "").split("x").map(Number);
  return {
    prompt: lines.slice(0, last).join("\n").split("\nNegative prompt:")[0],
    steps: Number(value("Steps")),
    ...(value("Seed") && { seed: Number(value("Seed")) }),
    ...(width && height && { width, height }),
    ...(value("Acceleration") && { acceleration: value("Acceleration") }),
  };
}
