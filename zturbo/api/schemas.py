"""The wire form of a request: members, aliases and tolerances, turned into `GenerationParams`.

Unknown members are ignored and null means absent, as clients of the published API expect. All problems of a body are
told at once; the rules of values live in `zturbo.params` alone.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from zturbo.errors import InvalidInput, Problem
from zturbo.params import (
    DEFAULT_SIZE,
    MAX_SIDE,
    MEMBERS,
    SIZES,
    GenerationParams,
    closest,
    nearest_side,
    shown,
    whole_number,
)

MODEL = "alibaba/z-image-turbo"
MODELS = (MODEL, f"aimlapi/{MODEL}")
BASE64_MODELS = "gpt-image-"
"""Clients that ask for a model of such a name read base64, and send no `response_format`."""
MAX_PARTIAL_IMAGES = 3
MAX_INTEGER_DIGITS = 4300
"""What Python reads (`sys.int_info.default_max_str_digits`); of every number in a body, one that is ignored too."""
DELIVERIES = ("url", "b64_json")
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "prompt",
        "size": "image_size",
        "steps": "num_inference_steps",
        "seed": "seed",
        "num_images": "num_images",
        "output_format": "output_format",
        "acceleration": "acceleration",
        "prompt_expansion": "enable_prompt_expansion",
        "safety_checker": "enable_safety_checker",
    }
)
"""Our parameter -> the member of the wire."""


def model_names(aliases: str) -> tuple[str, ...]:
    """Every name that the model answers to, its own first.

    Args:
        aliases: the setting `model_aliases`.
    """
    return (*MODELS, *(name.strip() for name in aliases.split(",") if name.strip()))


SIZE_PATTERN = "^(auto| *([0-9]{1,9}) *[xX*] *([0-9]{1,9}) *)$"
"""OpenAI's `size`, as it is read here."""
_LENIENT_SIZE = re.compile(SIZE_PATTERN)
_READERS = {member.name: member.read for member in MEMBERS}
_partial_images = whole_number(0, MAX_PARTIAL_IMAGES)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One body of `POST /v1/images/generations`, checked."""

    model: str
    params: GenerationParams
    delivery: str
    """`url` or `b64_json`."""
    stream: bool
    partial_images: int

    def with_seed(self, seed: int) -> "ImageRequest":
        """The same request with another seed."""
        return replace(self, params=replace(self.params, seed=seed))

    @classmethod
    def parse(cls, body: Mapping[str, Any], models: tuple[str, ...] = MODELS) -> "ImageRequest":
        """Check a body.

        Raises:
            InvalidInput: with every problem found.
        """
        sent = {name: value for name, value in body.items() if value is not None}
        problems: list[Problem] = []
        model = _model(sent, models, problems)
        delivery = _delivery(sent, "b64_json" if model.startswith(BASE64_MODELS) else "url", problems)
        stream, partial_images = _streaming(sent, problems)
        values = _aliases(sent, problems) | {ours: sent[wire] for ours, wire in NAMES.items() if wire in sent}
        try:
            params = GenerationParams.parse(values, NAMES)
        except InvalidInput as error:
            raise InvalidInput([*problems, *error.problems]) from None
        if problems:
            raise InvalidInput(problems)
        return cls(model, params, delivery, stream, partial_images)


def read_json_object(raw: bytes) -> dict[str, Any]:
    """A body's bytes as one JSON object.

    Raises:
        InvalidInput: not UTF-8, not JSON, a member twice, NaN or Infinity, too deep, an integer that is too long, or no
            object. A byte order mark before it is passed over (RFC 8259, 8.1).
    """
    try:
        text = raw.decode("utf-8-sig")
        body = json.loads(text, parse_int=_integer, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput([Problem(("body",), f"must be a JSON object: {reason}", ascii(raw[:80]))]) from None
    if not isinstance(body, dict):
        raise InvalidInput([Problem(("body",), f"must be a JSON object; got {shown(body)}", ascii(raw[:80]))])
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer has {len(digits)} characters; {MAX_INTEGER_DIGITS} can be read")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the member {shown(name)} comes twice")
        members[name] = value
    return members


def _model(sent: Mapping[str, Any], models: tuple[str, ...], problems: list[Problem]) -> str:
    model = sent.get("model")
    if model not in models:
        message = "is required" if model is None else f"must be one of {', '.join(models)}; got {shown(model)}"
        problems.append(Problem(("model",), message, model, f"nearest valid value: {MODEL}"))
    return str(model)


def _delivery(sent: dict[str, Any], default: str, problems: list[Problem]) -> str:
    """`response_format`; a gateway in wide use sends it as `output_format`."""
    if isinstance(sent.get("output_format"), str) and sent["output_format"] in DELIVERIES:
        sent.setdefault("response_format", sent.pop("output_format"))
    delivery = sent.get("response_format", default)
    if delivery not in DELIVERIES:
        message = f"must be one of {', '.join(DELIVERIES)}; got {shown(delivery)}"
        hint = f"nearest valid value: {closest(delivery, DELIVERIES) or DELIVERIES[0]}"
        problems.append(Problem(("response_format",), message, delivery, hint))
    return str(delivery)


def _streaming(sent: Mapping[str, Any], problems: list[Problem]) -> tuple[bool, int]:
    stream, partial = sent.get("stream", False), sent.get("partial_images", 0)
    if not isinstance(stream, bool):
        problems.append(Problem(("stream",), f"must be true or false; got {shown(stream)}", stream))
    try:
        return stream is True, _partial_images(partial, ("partial_images",))
    except InvalidInput as error:
        problems += error.problems
        return stream is True, 0


def _aliases(sent: Mapping[str, Any], problems: list[Problem]) -> dict[str, object]:
    """Members by the names of OpenAI's clients. They are checked even where the native member wins."""
    values: dict[str, object] = {}
    if "n" in sent:
        try:
            values["num_images"] = _READERS["num_images"](sent["n"], ("n",))
        except InvalidInput as error:
            problems += error.problems
    if "size" in sent:
        values["size"] = _lenient_size(sent["size"], problems)
    return values


def _lenient_size(size: object, problems: list[Problem]) -> object:
    """OpenAI's `size`: "auto", or "WxH" brought to the nearest size that can be drawn."""
    if size == "auto":
        return None
    match = _LENIENT_SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        message = f'must be "auto" or "WIDTHxHEIGHT"; got {shown(size)}'
        named = SIZES.get(size, DEFAULT_SIZE) if isinstance(size, str) else DEFAULT_SIZE
        problems.append(Problem(("size",), message, size, f"nearest valid value: {named[0]}x{named[1]}"))
        return None
    width, height = (nearest_side(min(int(side), 2 * MAX_SIDE)) for side in match.groups()[1:])
    return {"width": width, "height": height}
