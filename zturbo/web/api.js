// The public API, called as any other client calls it, and who is asking: a pasted key, else the local session that the
// server grants to its own page on the same computer. The session's token lives in this module and nowhere else.

const PATH = "/v1/images/generations";
const KEY = "zturbo.key";
const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;

let token = null;
let opening = null; // the request for a token, which all that ask meanwhile wait for
let unstored = null; // the key, where the browser forbids storage

/** An error of the API: its status, the problems of single members, and when trying again makes sense. */
export class ApiError extends Error {
  constructor(status, body, retryAfter = null) {
    super(body?.error?.message ?? body?.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = body?.error?.code ?? null;
    this.issues = body?.error?.data?.issues ?? [];
    this.requestId = body?.requestId ?? null;
    this.retryAfter = retryAfter;
  }
}

// --- who asks ---

export const key = {
  get: () => stored("sessionStorage") ?? stored("localStorage") ?? unstored,
  isKept: () => stored("localStorage") !== null,
  set(text, keep) {
    this.forget();
    try {
      window[keep ? "localStorage" : "sessionStorage"].setItem(KEY, text);
    } catch {
      unstored = text;
    }
  },
  forget() {
    unstored = null;
    for (const storage of ["sessionStorage", "localStorage"]) {
      try {
        window[storage].removeItem(KEY);
      } catch { /* then nothing is in it */ }
    }
  },
};

/** A storage goes by its name: where the browser forbids it, even looking it up throws. */
function stored(storage) {
  try {
    return window[storage].getItem(KEY);
  } catch {
    return null;
  }
}

/** Whether this page is one that the server may grant a session to. */
export const isLocal = LOOPBACK.test(location.hostname);

export const hasSession = () => token !== null;

/** "key", "session" or null: what requests are sent with. */
export async function authority() {
  if (key.get()) return "key";
  if (token === null && isLocal) await (opening ??= openSession().finally(() => { opening = null; }));
  return token === null ? null : "session";
}

async function openSession() {
  const answer = await fetch("/web/session", { method: "POST", headers: { "x-zturbo-playground": "1" } });
  token = answer.ok ? (await answer.json()).token : null;
}

// --- requests ---

async function send(path, options = {}) {
  const kind = await authority();
  const bearer = kind === "key" ? key.get() : token;
  const headers = { ...options.headers, ...(bearer && { authorization: `Bearer ${bearer}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401 && kind === "session" && !options.again) {
    token = null; // it ended, or the server was started anew
    return send(path, { ...options, again: true });
  }
  if (!answer.ok) throw await errorOf(answer);
  return answer;
}

async function errorOf(answer) {
  const body = await answer.json().catch(() => null);
  return new ApiError(answer.status, body, Number(answer.headers.get("retry-after")) || null);
}

export async function getJson(path) {
  return (await send(path)).json();
}

/** Draw; yields the stream's events as objects. Aborting the signal makes the server stop within a step. */
export async function* draw(request, signal) {
  const body = JSON.stringify({ ...request, response_format: "b64_json", stream: true, partial_images: 3 });
  const answer = await send(PATH, { method: "POST", headers: { "content-type": "application/json" }, body, signal });
  for await (const event of events(answer.body)) {
    if (event.error) throw new ApiError(event.statusCode ?? 500, event);
    yield event;
  }
}

/** The JSON data of server-sent events, one line at a time: a picture's event may have many megabytes. */
export async function* events(stream) {
  let parts = [];
  for await (const text of chunks(stream.pipeThrough(new TextDecoderStream()))) {
    const lines = text.split("\n");
    parts.push(lines[0]);
    for (const next of lines.slice(1)) {
      const line = parts.join("").trimEnd();
      parts = [next];
      if (line.startsWith("data:") && line !== "data: [DONE]") yield JSON.parse(line.slice(5));
    }
  }
}

async function* chunks(stream) { // Safari cannot iterate over streams
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

export function blobOf(base64, type) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Blob([bytes], { type });
}
