"""`/openapi.json` and `/docs`: what this server answers, for programs and for people.

OpenAPI 3.0.3, as the published document is 3.0: its operation stands here in its own words (`nullable` included), with
our members beside it, and generators of 3.0 and of 3.1 both read it. Every limit is taken from where it is enforced.
No framework could have written it: the endpoint reads its body itself, to tell all problems of it at once.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from zturbo import __version__
from zturbo.api.identity import CLIENT_ID
from zturbo.api.reference import POLICY, page
from zturbo.api.repeats import KEY_PATTERN
from zturbo.api.routes import Router
from zturbo.api.schemas import DELIVERIES, MAX_PARTIAL_IMAGES, MODEL, SIZE_PATTERN
from zturbo.api.tags import known
from zturbo.errors import (
    Busy,
    Conflict,
    ContentPolicyViolation,
    DeadlinePassed,
    FileGone,
    Forbidden,
    InvalidInput,
    NoSuchFile,
    RangeNotSatisfiable,
    RateLimited,
    StorageError,
    TooLarge,
    Unauthorized,
    WrongMediaType,
    ZTurboError,
)
from zturbo.params import (
    ACCELERATIONS,
    DEFAULT_SIZE,
    MAX_IMAGES,
    MAX_PROMPT,
    MAX_SEED_DIGITS,
    MAX_SIDE,
    MAX_STEPS,
    MEMBERS,
    MIN_SIDE,
    OUTPUT_FORMATS,
    SIDE_MULTIPLE,
    SIZES,
)
from zturbo.storage.files import FOLDER_PATTERN, PICTURE_PATTERN

Json = dict[str, Any]
GENERATIONS = "/v1/images/generations"
DEFAULTS: Mapping[str, str] = {member.name: member.default_text for member in MEMBERS}

router = Router()


@router.route("/openapi.json", "GET", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The document."""
    return _cached(request, request.app.state.openapi, "application/json")


@router.route("/docs", "GET", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The same for people: one page without scripts, and without anything from another host."""
    return _cached(request, request.app.state.reference, "text/html; charset=utf-8")


def publish(app: Any, paths: Mapping[str, Json] | None = None) -> None:
    """Write both forms once, into the application's state.

    Args:
        paths: further operations: path -> method -> operation.
    """
    whole = document(app.state.config.public_url, app.state.models, paths or {})
    app.state.openapi = json.dumps(whole, indent=1).encode()
    app.state.reference = page(whole).encode()


def _cached(request: Request, body: bytes, content_type: str) -> Response:
    """A body with its ETag, or 304 where the client has it already."""
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {
        "etag": etag,
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": POLICY,
    }
    if known(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers | {"content-type": content_type})


def document(public_url: str, models: tuple[str, ...], paths: Mapping[str, Json]) -> Json:
    """The whole document.

    Args:
        public_url: the address before every path, "" for the one that the document was fetched from.
        models: the names that the model answers to.
        paths: operations of other files: path -> method -> operation.
    """
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "zturbo",
            "version": __version__,
            "description": "Draws pictures from text with Z-Image-Turbo. Errors have one form, `Error`, everywhere.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": [{"url": public_url or "/"}],
        "paths": {
            GENERATIONS: {"post": _generations(models)},
            "/v1/models": {"get": _models()},
            "/model/{id}": {"get": _model()},
            "/files/b/{folder}/{picture}": {"get": _file(), "head": _file_head()},
            "/healthz": {"get": _health()},
            "/readyz": {"get": _ready()},
            "/metrics": {"get": _metrics()},
            **paths,
        },
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "32 lower-case hexadecimal characters",
                    "description": "An API key. The first start of `zturbo serve` prints one, `zturbo keys` more.",
                }
            },
            "headers": HEADERS,
            "schemas": {"Error": ERROR, "Model": MODEL_SCHEMA, "Picture": PICTURE, "Usage": USAGE},
        },
    }


# --- schemas ---------------------------------------------------------------------------------------------------------


def _text(description: str, **facts: Any) -> Json:
    return {"type": "string", "description": description} | facts


def _whole(description: str, **facts: Any) -> Json:
    return {"type": "integer", "description": description} | facts


def _object(required: tuple[str, ...] = (), **properties: Json) -> Json:
    """An object; members that are not listed may come as well."""
    return {"type": "object", "properties": properties} | ({"required": list(required)} if required else {})


def _list(items: Json, description: str = "") -> Json:
    return {"type": "array", "items": items} | ({"description": description} if description else {})


def _ref(name: str, kind: str = "schemas") -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def image_request(models: tuple[str, ...]) -> Json:
    """The body of `POST /v1/images/generations`: the published members first, then the others that count."""
    absent = {"nullable": True}  # null counts as absent wherever there is a default
    return {
        "title": MODEL,
        "type": "object",
        "required": ["model", "prompt"],
        "properties": {
            "model": _text(
                f"What draws. Also taken: {', '.join(name for name in models if name != MODEL)}.", enum=[MODEL]
            ),
            "prompt": _text(
                "What the picture shows, in any language. Counted in code points; no NUL, no lone surrogates.",
                maxLength=MAX_PROMPT, pattern="^[^\\u0000]*$",
            ),
            "image_size": _size() | absent,
            "output_format": _text(
                "The pictures' file format.", enum=list(OUTPUT_FORMATS), default=DEFAULTS["output_format"], **absent
            ),
            "enable_prompt_expansion": {
                "type": "boolean", "default": _flag("prompt_expansion"),
                "description": "Let a language model add detail to a short prompt; the answer says what was drawn.",
                **absent,
            },
            "num_inference_steps": _whole(
                f"Passes of the denoiser; {DEFAULTS['steps']} where it is left out. Fewer is faster and rougher.",
                minimum=1, maximum=MAX_STEPS, **absent,
            ),
            "seed": _whole(
                "Where the noise comes from. The same seed, prompt and settings draw the same picture on the same"
                " version of the model; picture i of a request has this seed + i. Left out, it is chosen at random and"
                f" reported. Any size up to {MAX_SEED_DIGITS} digits; from 2^63 on it counts modulo 2^63.",
                minimum=1, **absent,
            ),
            "num_images": {
                "type": "number", "minimum": 1, "maximum": MAX_IMAGES, "multipleOf": 1,
                "default": int(DEFAULTS["num_images"]), "description": "How many pictures; a whole number.", **absent,
            },
            "enable_safety_checker": {
                "type": "boolean",
                "default": _flag("safety_checker"),
                "description": "Look at each picture before it is handed out; a black one replaces a flagged one.",
                **absent,
            },
            "acceleration": _text(
                "How much exactness may be traded for speed.",
                enum=list(ACCELERATIONS), default=DEFAULTS["acceleration"], **absent,
            ),
            "response_format": _text(
                "How pictures are delivered: as an address, or inside the answer.",
                enum=[*DELIVERIES, None], default=DELIVERIES[0], **absent,
            ),
            "stream": {
                "type": "boolean", "default": False, **absent,
                "description": "Answer with server-sent events: progress, previews, then each picture.",
            },
            "partial_images": _whole(
                "Previews of each picture in a stream.", minimum=0, maximum=MAX_PARTIAL_IMAGES, default=0, **absent
            ),
            "n": {
                "type": "number", "minimum": 1, "maximum": MAX_IMAGES, "multipleOf": 1, **absent,
                "description": "`num_images` by the name that OpenAI's clients send; `num_images` wins.",
            },
            "size": _text(
                "`image_size` as OpenAI's clients send it, WIDTHxHEIGHT or auto, brought to the nearest size that can"
                " be drawn; `image_size` wins.",
                pattern=SIZE_PATTERN, **absent,
            ),
        },
    }  # fmt: skip


def _flag(member: str) -> bool:
    return bool(json.loads(DEFAULTS[member]))


def _size() -> Json:
    width, height = (
        {"type": "integer", "minimum": MIN_SIDE, "maximum": MAX_SIDE, "multipleOf": SIDE_MULTIPLE,
         "default": default, "nullable": True}
        for default in DEFAULT_SIZE
    )  # fmt: skip
    presets = ", ".join(f"{name} {width}x{height}" for name, (width, height) in SIZES.items())
    return {
        "anyOf": [
            _object(width=width, height=height)
            | {"description": f"Pixels; each side is a multiple of {SIDE_MULTIPLE}."},
            _text(f"A size by its name: {presets}.", enum=list(SIZES)),
        ],
        "default": DEFAULTS["size"],
    }


PICTURE = _object(
    ("width", "height", "content_type", "seed"),
    url=_text("Where the picture can be fetched, without a key. Absent where it came as base64.", nullable=True),
    b64_json=_text("The picture's file in base64. Absent where it has an address.", nullable=True),
    width=_whole("Pixels."),
    height=_whole("Pixels."),
    content_type=_text("The media type of the file.", enum=[f"image/{name}" for name in OUTPUT_FORMATS]),
    seed=_whole("Draws this picture again, alone.", minimum=1),
    revised_prompt=_text("The prompt as this picture was drawn, where expansion changed it."),
)
USAGE = _object(
    ("tokens_used", "credits_used", "usd_spent"),
    tokens_used={"type": "number", "description": "The price in credits, by the published name."},
    credits_used=_whole("The price in credits; 2,000,000 are one US dollar.", minimum=0),
    usd_spent={"type": "number", "minimum": 0, "description": "The same in US dollars."},
)
EXPANSION = _object(
    ("applied", "cached", "reason"),
    applied={"type": "boolean", "description": "Whether something was added to the prompt."},
    cached={"type": "boolean", "description": "Whether that text was known already."},
    reason=_text("Why nothing was added; empty where something was."),
) | {"description": "What became of the prompt. Absent where no expansion was asked for."}
SAFETY = _object(
    ("checker", "threshold", "scores"),
    checker=_text("name@version."),
    threshold={"type": "number", "description": "A picture whose score reaches it is withheld."},
    scores=_list({"type": "number"}, "Of each picture, in order."),
) | {"description": "What the safety checker found. Absent where nothing was checked."}
MODEL_SCHEMA = _object(
    ("id", "object", "type", "info", "tags", "aliases"),
    id=_text("What requests call it."),
    object=_text("Always `model`.", enum=["model"]),
    type=_text("What it makes.", enum=["image"]),
    info=_object(
        ("name", "developer", "description"),
        name=_text("For people."),
        developer=_text("Who trained it."),
        description=_text("What is loaded just now."),
    ),
    tags=_list({"type": "string"}, "The checkpoint's version, and what kind it is."),
    aliases=_list({"type": "string"}, "Other names that requests may give it."),
)
ISSUE = _object(
    ("path", "message", "received", "hint"),
    path=_list({"type": "string"}, "The member's name, and its parents'."),
    message=_text("What it must be, and what came."),
    received={"description": "What came, shortened.", "nullable": True},
    hint=_text("The nearest valid value, or what to do."),
)
ERROR = _object(
    ("requestId", "statusCode", "timestamp", "path", "title", "status", "instance", "message", "error"),
    requestId=_text("Also in the header `x-request-id`, and in the server's log."),
    statusCode=_whole("The HTTP status."),
    timestamp=_text("When, in UTC.", format="date-time"),
    path=_text("Of the request."),
    title=_text("The status in words."),
    status=_whole("The HTTP status."),
    instance=_text("Of the request."),
    message=_text("What is wrong, with everything that was wrong of a body."),
    error=_object(
        ("name", "message", "type", "code", "param", "data"),
        name=_text("The status as an exception's name."),
        message=_text("The same message."),
        type=_text("The kind of error, in OpenAI's words."),
        code=_text("For programs; `docs/reference/errors.md` lists the codes."),
        param=_text("The first wrong member.", nullable=True),
        data=_object(("kind", "issues"), kind=_text("The vendor's code."), issues=_list(ISSUE)),
    ),
)
HEADERS: Json = {
    "RequestId": {"description": "The request's id: 21 characters, also in the log.", "schema": {"type": "string"}},
    "ClientRequestId": {"description": "The client's own id, where it sent one.", "schema": {"type": "string"}},
    "RetryAfter": {"description": "Seconds until trying again makes sense.", "schema": {"type": "integer"}},
    "CreditsUsed": {
        "description": "What the request cost, in credits. Not on a stream: its completed events have `usage`.",
        "schema": {"type": "integer"},
    },
    "UsdSpent": {"description": "What the request cost, in US dollars.", "schema": {"type": "number"}},
    "ShouldRetry": {"description": "`false` where trying again would not help.", "schema": {"type": "string"}},
    "Replayed": {"description": "`true` where the answer is the first one once more.", "schema": {"type": "string"}},
    "ETag": {"description": "Changes with the content.", "schema": {"type": "string"}},
}
EVENTS = {
    "progress": "stage, image, images, step, steps; with the stage `queued` position and, where known, expected_s;"
    " with `encode` prompt and prompt_expansion",
    "partial_image": "a preview: b64_json, image (of which picture, from 0), partial_image_index (from 0 for each)",
    "completed": "for each picture: b64_json, its url where one was asked for, usage (its own share)",
    "failed": "in place of the rest: the members of `Error`",
}
"""Name of a streamed event -> what it carries."""
_EVERYWHERE: Json = {
    "x-request-id": _ref("RequestId", "headers"),
    "x-inference-id": _ref("RequestId", "headers"),
    "x-client-request-id": _ref("ClientRequestId", "headers"),
}


# --- operations ------------------------------------------------------------------------------------------------------


def errors(*kinds: type[ZTurboError]) -> Json:
    """Responses for errors: status -> what its classes say of themselves."""
    found: dict[str, list[str]] = {}
    for kind in kinds:
        found.setdefault(str(kind.status), []).append((kind.__doc__ or "").strip().partition("\n")[0])
    return {status: _failure(" ".join(texts), status) for status, texts in sorted(found.items())}


def answer(description: str, content: Json | None = None, headers: Json | None = None) -> Json:
    """One response with the headers that every answer has."""
    response: Json = {"description": description, "headers": _EVERYWHERE | (headers or {})}
    return response | ({"content": content} if content else {})


def json_answer(description: str, schema: Json, headers: Json | None = None) -> Json:
    """One response of JSON."""
    return answer(description, {"application/json": {"schema": schema}}, headers)


def _failure(description: str, status: str) -> Json:
    headers = {}
    if status in ("429", "503"):
        headers["retry-after"] = _ref("RetryAfter", "headers")
    elif status >= "500":
        headers["x-should-retry"] = _ref("ShouldRetry", "headers")
    return json_answer(description, _ref("Error"), headers)


_CRASH = {"500": _failure("A fault of the server; its log has the details under the request's id.", "500")}
_NO_SUCH = {"404": _failure("There is no such thing here.", "404")}
_PUBLIC: list[Json] = []
"""Security of what needs no key."""
_KEY: list[Json] = [{"key": []}]


def _generations(models: tuple[str, ...]) -> Json:
    refusals = errors(
        InvalidInput, ContentPolicyViolation, Unauthorized, Forbidden, Conflict, FileGone, TooLarge, WrongMediaType,
        RateLimited, Busy, StorageError, DeadlinePassed,
    )  # fmt: skip
    return {
        "operationId": "_v1_images_generations",
        "tags": ["images"],
        "summary": "Draw pictures",
        "description": "Also at `/images/generations`, with and without a slash at the end. With `stream` the "
        "answer is a stream of events instead. A request that fails or is given up costs nothing.",
        "security": _KEY,
        "parameters": [
            {
                "name": "Idempotency-Key", "in": "header", "required": False,
                "description": "The same key with the same body, within 24 hours, gets the first answer again.",
                "schema": {"type": "string", "pattern": KEY_PATTERN},
            },
            {
                "name": "X-Client-Request-Id", "in": "header", "required": False, "schema": {"type": "string"},
                "description": f"Your own id of the request, sent back and logged where it is {CLIENT_ID.pattern}.",
            },
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": image_request(models)}}},
        "responses": {"200": _pictures(), **refusals, **_CRASH},
    }  # fmt: skip


def _pictures() -> Json:
    body = _object(
        ("created", "data", "images", "seed", "prompt", "timings", "model_version", "meta"),
        created=_whole("When, in seconds since 1970 in UTC."),
        data=_list(PICTURE, "The pictures.") | {"nullable": True},
        images=_list(_ref("Picture"), "The same once more, for clients that read this name."),
        seed=_whole("Of the first picture.", minimum=1),
        prompt=_text("The prompt that was drawn; of the first picture, where they differ."),
        prompt_expansion=EXPANSION,
        has_nsfw_concepts=_list({"type": "boolean"}, "For each picture, whether the safety checker withheld it."),
        safety=SAFETY,
        timings={
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "Seconds by stage, and in total.",
        },
        model_version=_text("The checkpoint and its digest."),
        acceleration=_text("The level that drew: a lower one than asked for, where that one gains nothing here."),
        meta=_object(usage=USAGE | {"nullable": True}) | {"nullable": True, "description": "What it cost."},
    )
    headers = {
        "x-aimlapi-credits-used": _ref("CreditsUsed", "headers"),
        "x-aimlapi-usd-spent": _ref("UsdSpent", "headers"),
        "idempotent-replayed": _ref("Replayed", "headers"),
    }
    stream = _object(
        ("event", "data"),
        event=_text("OpenAI's names, and `progress`.", enum=[f"image_generation.{name}" for name in EVENTS]),
        data=_text("One JSON object; its member `type` is the event's name once more."),
    ) | {"description": "Each event of the stream: " + "; ".join(f"{name} ({has})" for name, has in EVENTS.items())}
    content = {"application/json": {"schema": body}, "text/event-stream": {"schema": stream}}
    return answer("The pictures.", content, headers)


def _models() -> Json:
    listed = _object(("object", "data"), object=_text("Always `list`.", enum=["list"]), data=_list(_ref("Model")))
    return _open("models", "List the models", {"200": _tagged(listed), **NOT_MODIFIED})


def _model() -> Json:
    one = _object(("object", "data"), object=_text("Always `model`.", enum=["model"]), data=_ref("Model"))
    name = {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,200}$", "example": MODEL},
        "description": "A model's id or one of its aliases; slashes may stand as they are.",
    }
    return _open("models", "Look up a model", {"200": _tagged(one), **NOT_MODIFIED, **_NO_SUCH}) | {
        "parameters": [name]
    }


def _tagged(schema: Json) -> Json:
    return json_answer("As asked.", schema, {"etag": _ref("ETag", "headers")})


NOT_MODIFIED = {"304": answer("What the client has, by its `If-None-Match`, is still so.")}
_FILE_PARAMETERS = [
    {"name": "folder", "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{FOLDER_PATTERN}$"},
     "description": "Eight hexadecimal characters."},
    {"name": "picture", "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{PICTURE_PATTERN}$"},
     "description": "An unguessable name, and the format's extension."},
    {"name": "Range", "in": "header", "required": False, "schema": {"type": "string", "example": "bytes=0-1023"},
     "description": "One range of bytes; everything else asks for the whole."},
]  # fmt: skip


def _file() -> Json:
    binary = {f"image/{name}": {"schema": {"type": "string", "format": "binary"}} for name in OUTPUT_FORMATS}
    responses = {
        "200": answer("The picture.", binary),
        "206": answer("The range of it.", binary),
        **NOT_MODIFIED,
        **errors(NoSuchFile, FileGone, RangeNotSatisfiable, StorageError),
        **_CRASH,
    }
    return _open("files", "Fetch a picture", responses) | {"parameters": _FILE_PARAMETERS}


def _file_head() -> Json:
    ranges = ("206", str(RangeNotSatisfiable.status))  # of GET alone
    answers = {status: response for status, response in _file()["responses"].items() if status not in ranges}
    responses = {status: answer(response["description"]) for status, response in answers.items()}
    parameters = [one for one in _FILE_PARAMETERS if one["in"] == "path"]
    return _open("files", "Look up a picture", responses) | {"parameters": parameters}


def _health() -> Json:
    said = _object(("status",), status=_text("Always `ok`.", enum=["ok"]))
    return _open("operation", "Whether the process answers", {"200": json_answer("It does.", said)})


def _ready() -> Json:
    said = _object(("status", "waiting"), status=_text("Always `ready`.", enum=["ready"]),
                   waiting=_whole("Requests in the queue.", minimum=0))  # fmt: skip
    return _open("operation", "Whether pictures can be drawn", {"200": json_answer("They can.", said), **errors(Busy)})


def _metrics() -> Json:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return _open("operation", "Counters for Prometheus", {"200": answer("Prometheus' text format.", text)})


def _open(tag: str, summary: str, responses: Json) -> Json:
    """An operation that needs no key."""
    return {"tags": [tag], "summary": summary, "security": _PUBLIC, "responses": responses}
