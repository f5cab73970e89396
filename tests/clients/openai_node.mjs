// The official OpenAI package for Node: prints one line of JSON for each thing that test_openai_node.py looks at.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const say = (name, value) => console.log(JSON.stringify({ name, value }));
const model = "alibaba/z-image-turbo";

const plain = await client.images.generate({ model, prompt: "a cat", size: "1024x1024", n: 2 });
say("urls", plain.data.map((picture) => picture.url));

const base64 = await client.images.generate({ model, prompt: "a cat", response_format: "b64_json" });
say("base64", base64.data[0].b64_json.slice(0, 8));

const events = [];
for await (const event of await client.images.generate({ model, prompt: "a cat", stream: true, partial_images: 2 })) {
  events.push({ type: event.type, picture: event.b64_json?.slice(0, 8) });
}
say("events", events);

for (const [name, options, body] of [
  ["bad request", {}, { n: 9 }],
  ["no key", { apiKey: "0".repeat(32) }, {}],
]) {
  try {
    await client.withOptions(options).images.generate({ model, prompt: "a cat", ...body });
    say(name, "no error");
  } catch (error) {
    say(name, { class: error.constructor.name, status: error.status, code: error.code, param: error.param });
  }
}
