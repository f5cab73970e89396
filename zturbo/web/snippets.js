// The same request in four languages. Each runs as it stands, with the key in the environment variable ZTURBO_API_KEY,
// and saves the pictures beside it. A JSON text is a literal of JavaScript as well, and of Python but for its words.

export const LANGUAGES = {
  curl: { name: "cURL", write: curl },
  requests: { name: "Python", write: pythonRequests },
  openai: { name: "Python · OpenAI", write: pythonOpenai },
  javascript: { name: "JavaScript", write: javascript },
};

const json = (value) => JSON.stringify(value, null, 2);

function indented(text, by) {
  return text.replaceAll("\n", `\n${" ".repeat(by)}`);
}

/** A Python literal; JSON's escapes mean the same there. */
function python(value, depth = 0) {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value === null) return "None";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = " ".repeat(4 * (depth + 1));
  const rows = Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${python(one, depth + 1)},\n`);
  return `{\n${rows.join("")}${" ".repeat(4 * depth)}}`;
}

function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function curl(origin, request) {
  return `curl --fail-with-body --silent --show-error ${shell(`${origin}/v1/images/generations`)} \\
  --header "Authorization: Bearer $ZTURBO_API_KEY" \\
  --header 'Content-Type: application/json' \\
  --data ${shell(json(request))}
`;
}

function pythonRequests(origin, request) {
  return `import os
from pathlib import Path

import requests

answer = requests.post(
    ${JSON.stringify(`${origin}/v1/images/generations`)},
    headers={"Authorization": f"Bearer {os.environ['ZTURBO_API_KEY']}"},
    json=${python(request, 1)},
    timeout=600,
)
answer.raise_for_status()
for i, picture in enumerate(answer.json()["data"]):
    file = Path(f"picture-{i}.${suffix(request)}")
    file.write_bytes(requests.get(picture["url"], timeout=60).content)
    print(file, picture["seed"])
`;
}

/** What OpenAI's client has a name for goes by that name, the rest into `extra_body`. */
function pythonOpenai(origin, request) {
  const { model, prompt, num_images: n = 1, ...rest } = request;
  const extra = Object.keys(rest).length ? `\n    extra_body=${python(rest, 1)},` : "";
  return `import base64
import os
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=os.environ["ZTURBO_API_KEY"])
answer = client.images.generate(
    model=${python(model)},
    prompt=${python(prompt)},
    n=${n},
    response_format="b64_json",${extra}
)
for i, picture in enumerate(answer.data):
    file = Path(f"picture-{i}.${suffix(request)}")
    file.write_bytes(base64.b64decode(picture.b64_json))
    print(file)
`;
}

function javascript(origin, request) {
  return `// node draw.mjs
import { writeFile } from "node:fs/promises";

const answer = await fetch(${JSON.stringify(`${origin}/v1/images/generations`)}, {
  method: "POST",
  headers: {
    "Authorization": \`Bearer \${process.env.ZTURBO_API_KEY}\`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify(${indented(json(request), 2)}),
});
const result = await answer.json();
if (!answer.ok) throw new Error(result.message);
for (const [i, picture] of result.data.entries()) {
  const file = \`picture-\${i}.${suffix(request)}\`;
  await writeFile(file, Buffer.from(await (await fetch(picture.url)).arrayBuffer()));
  console.log(file, picture.seed);
}
`;
}

function suffix(request) {
  return request.output_format === "jpeg" ? "jpg" : request.output_format ?? "png";
}
