"""What is sent back for delivered pictures: one JSON body, or server-sent events with OpenAI's names."""

import asyncio
import base64
import json
import re
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from os.path import commonprefix
from typing import Any

from starlette.requests import Request

from zturbo.api.schemas import ImageRequest
from zturbo.engine.progress import Progress
from zturbo.errors import FileGone, NoSuchFile
from zturbo.expansion.expansion import Expansion
from zturbo.pricing import CREDITS_PER_USD
from zturbo.service import Delivered, Delivery
from zturbo.storage.files import Files
from zturbo.storage.records import Screening
from zturbo.tokens import new_token

_HOST = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and what became of it, as it can be told again.

    Attributes:
        wanted: the checked body; its seed is the one that was drawn.
        created: seconds since 1970 in UTC.
        credits: charged.
        public_url: the address before `/files/...`, where the settings name one.
    """

    wanted: ImageRequest
    delivered: Delivered
    credits: int
    created: int
    public_url: str = ""

    def headers(self) -> dict[str, str]:
        """What the answer cost."""
        usage = _usage(self.credits)
        return {
            "x-aimlapi-credits-used": str(usage["credits_used"]),
            "x-aimlapi-usd-spent": str(usage["usd_spent"]),
        }

    def body(self, request: Request) -> dict[str, Any]:
        """The whole answer."""
        params, delivered = self.wanted.params, self.delivered
        items = [self._item(request, picture) for picture in delivered.pictures]
        return {
            "created": self.created,
            "data": items,
            "images": items,
            "seed": params.seed,
            # False where nothing was checked as well, as the published type is a list of booleans; `safety` tells.
            "has_nsfw_concepts": [picture.flagged for picture in delivered.pictures],
            **self._told(),
            "meta": {"usage": _usage(self.credits)},
        }

    def _told(self) -> dict[str, Any]:
        """What is said of the whole request, in the body and with each event."""
        delivered = self.delivered
        expansion = delivered.expansion
        return {
            "prompt": expansion.text if expansion else self.wanted.params.prompt,
            **({"prompt_expansion": expansion.as_dict()} if expansion else {}),
            **_safety(delivered),
            "timings": {name: round(seconds, 4) for name, seconds in delivered.timings.items()},
            "model_version": delivered.model_version,
            **({"acceleration": delivered.level} if delivered.level else {}),
        }

    def events(self, request: Request) -> list[bytes]:
        """One event for each picture. OpenAI's clients read base64 from it always, so an address comes beside it."""
        usage = _usage(self.credits // len(self.delivered.pictures))  # a picture's share: clients add them up
        tokens = {"total_tokens": usage["tokens_used"], "input_tokens": 0, "output_tokens": usage["tokens_used"],
                  "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}  # fmt: skip
        return [
            event(
                "completed",
                _described(self.wanted)
                | _base64(picture.data)
                | self._item(request, picture)
                | self._told()
                | {"has_nsfw_concepts": [picture.flagged], "usage": usage | tokens, "prompt": self._drawn(picture)},
            )
            for picture in self.delivered.pictures
        ]

    def _item(self, request: Request, picture: Delivery) -> dict[str, Any]:
        """One picture of the answer: exactly one of `url` and `b64_json`, and no null member."""
        params = self.wanted.params
        carried = {"url": self._url(request, picture)} if self.wanted.delivery == "url" else _base64(picture.data)
        return carried | {
            "width": params.width,
            "height": params.height,
            "content_type": f"image/{params.output_format}",
            "seed": picture.seed,
            **self._revised(picture),
        }

    def _revised(self, picture: Delivery) -> dict[str, str]:
        """The prompt that was drawn, where it is another than the one received."""
        expansion = self.delivered.expansion
        return {"revised_prompt": self._drawn(picture)} if expansion and expansion.applied else {}

    def _drawn(self, picture: Delivery) -> str:
        expansion = self.delivered.expansion
        return expansion.for_seed(picture.seed).text if expansion else self.wanted.params.prompt

    def _url(self, request: Request, picture: Delivery) -> str:
        assert picture.name is not None, "a picture that is told by its address lies in the store"
        return f"{self.public_url or base_of(request)}/files/b/{picture.name}"

    # --- kept for a repetition of the request --------------------------------------------------------------------

    def kept(self) -> bytes:
        """All that a repetition of the same body needs beside its prompt and the pictures, which are in the store."""
        delivered = self.delivered
        return json.dumps(
            {
                "created": self.created,
                "credits": self.credits,
                "seed": self.wanted.params.seed,
                "pictures": [[picture.name, picture.seed, picture.flagged] for picture in delivered.pictures],
                "timings": delivered.timings,
                "model_version": delivered.model_version,
                "level": delivered.level,
                "told": self.wanted.delivery == "url",
                "safety": asdict(delivered.safety) if delivered.safety else None,
                "expansion": _without_prompt(delivered.expansion, self.wanted.params.prompt),
            }
        ).encode()

    @classmethod
    async def restored(cls, kept: bytes, wanted: ImageRequest, files: Files, public_url: str) -> "Answer":
        """The answer that `kept` describes, to the same body.

        Raises:
            FileGone: its pictures are wanted as base64, and are not kept any more.
        """
        facts = json.loads(kept)
        pictures = []
        for name, seed, flagged in facts["pictures"]:
            data = b""
            if wanted.delivery == "b64_json" or wanted.stream:
                try:
                    found = await files.open(name)
                except NoSuchFile as error:  # an operator deleted it, or did not restore it
                    raise FileGone(name) from error
                with found.stream as stream:
                    data = await asyncio.to_thread(stream.read)
            pictures.append(Delivery(data, seed, name, flagged))
        safety = Screening(**facts["safety"]) if facts["safety"] else None
        expansion = _with_prompt(facts["expansion"], wanted.params.prompt)
        told = (facts["timings"], facts["model_version"], safety, expansion, facts.get("level"))
        delivered = Delivered(tuple(pictures), *told)
        return cls(wanted.with_seed(facts["seed"]), delivered, facts["credits"], facts["created"], public_url)


def untold(kept: bytes) -> list[str]:
    """Names of a kept answer's pictures that nobody was told: once it has expired, nobody can ask for them."""
    facts = json.loads(kept)
    return [] if facts.get("told", True) else [name for name, *_ in facts["pictures"]]


def _without_prompt(expansion: Expansion | None, prompt: str) -> dict[str, Any] | None:
    """An expansion as it is kept: how many characters of the prompt its text begins with, and what comes after."""
    if expansion is None:
        return None
    shared = len(commonprefix((expansion.text, prompt)))  # noqa: RUF071  # characters are meant, not folders
    return asdict(expansion) | {"text": expansion.text[shared:], "shared": shared}


def _with_prompt(kept: dict[str, Any] | None, prompt: str) -> Expansion | None:
    """The expansion that `_without_prompt` took apart; answers of earlier versions have the text whole."""
    if kept is None:
        return None
    shared = kept.pop("shared", 0)
    arrangements = tuple(kept.pop("arrangements", ()))
    return Expansion(**kept | {"text": prompt[:shared] + kept["text"], "arrangements": arrangements})


def _usage(credits: int) -> dict[str, Any]:
    return {"tokens_used": credits, "credits_used": credits, "usd_spent": credits / CREDITS_PER_USD}


def base_of(request: Request) -> str:
    """The address by which a client reached this server, without a path; the server's own where that is none."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        name, port = request.scope["server"]
        host = f"{name}:{port}"
    return f"{request.scope['scheme']}://{host}"


def progress_event(progress: Progress) -> bytes:
    """Our own event: how far the work is, and, when drawing begins, what became of the prompt."""
    expansion = progress.expansion if progress.stage == "encode" else None
    told: dict[str, Any] = {}
    if expansion is not None:
        told = {"prompt": expansion.text, "prompt_expansion": expansion.as_dict()}
    if progress.position is not None:
        told["position"] = progress.position
    if progress.expected_s is not None:
        told["expected_s"] = round(progress.expected_s, 1)
    return event(
        "progress",
        {
            "stage": progress.stage,
            "image": progress.image,
            "images": progress.images,
            "step": progress.step,
            "steps": progress.steps,
            **told,
        },
    )


def preview_event(wanted: ImageRequest, data: bytes, image: int, index: int) -> bytes:
    """A picture of a request that is still being drawn, and which of its previews this is; both counted from 0."""
    return event("partial_image", _described(wanted) | _base64(data) | {"image": image, "partial_image_index": index})


def event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    kind = f"image_generation.{name}"
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), rendered({"type": kind} | data))


class Base64:
    """A picture's bytes, to be told as text; `rendered` knows it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @cached_property
    def text(self) -> bytes:
        """In base64."""
        return base64.b64encode(self._data)


def rendered(value: Any) -> bytes:
    """JSON with `Base64` in it; pictures are put in between, for the encoder would hold up the event loop with them."""
    seal, pictures = new_token(), list[Base64]()

    def sealed(picture: Base64) -> str:
        pictures.append(picture)
        return f"{seal}{len(pictures) - 1}"

    text = json.dumps(value, default=sealed, allow_nan=False).encode()  # ASCII: some clients break lines at U+2028
    parts = re.split(rb"%b(\d+)" % re.escape(seal.encode()), text)
    parts[1::2] = [pictures[int(number)].text for number in parts[1::2]]
    return b"".join(parts)


def _safety(delivered: Delivered) -> dict[str, Any]:
    """Our own member: which checker judged, and its scores in order; absent where nothing was checked."""
    found = delivered.safety
    if found is None:
        return {}
    return {"safety": {"checker": found.checker, "threshold": found.threshold, "scores": list(found.scores)}}


def _base64(data: bytes) -> dict[str, Base64]:
    return {"b64_json": Base64(data)}


def _described(wanted: ImageRequest) -> dict[str, Any]:
    """Members that OpenAI's clients expect on both kinds of image events."""
    params = wanted.params
    return {
        "created_at": int(time.time()),
        "size": f"{params.width}x{params.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": params.output_format,
    }
