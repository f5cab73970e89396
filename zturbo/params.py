"""What one request may ask for: the limits, and `GenerationParams.parse`, the only place where they are checked.

Every door (command line, HTTP, Python) hands its loose values to `parse`, which either returns parameters that are
right or raises one `InvalidInput` that lists every problem at once. Imports neither torch nor a web framework.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isinf, isnan
from types import MappingProxyType
from typing import Any, Self, TypeGuard

from zturbo.errors import InvalidInput, Problem

MAX_PROMPT = 4000
"""Code points."""
MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 512, 2048, 32
"""Pixels. The multiple is the published API's; the model itself could draw every 16."""
DEFAULT_SIZE = (1024, 768)
"""Width, height in pixels: `landscape_4_3`."""
MAX_STEPS = 8
MAX_IMAGES = 4
RANDOM_SEED_LIMIT = 2**53
"""Random seeds stay below it: JavaScript reads such integers exactly."""
SEED_LIMIT = 2**63
"""From here on seeds are folded: seed modulo this."""
MAX_SEED_DIGITS = 4000
"""Python refuses to print or parse integers past 4300 digits; seed + image must stay below that."""
OUTPUT_FORMATS = ("png", "jpeg", "webp")
ACCELERATIONS = ("none", "regular", "high")
SIZES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "square_hd": (1024, 1024),
        "square": (512, 512),
        "portrait_4_3": (768, 1024),
        "portrait_16_9": (576, 1024),
        "landscape_4_3": (1024, 768),
        "landscape_16_9": (1024, 576),
    }
)
"""Preset name -> (width, height) in pixels."""

SIDE_RULE = f"a multiple of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}"
SIZE_RULE = f"{', '.join(SIZES)}, or WIDTHxHEIGHT with each side {SIDE_RULE}"
_SIZE_PATTERN = re.compile(r"(\d{1,9})[xX](\d{1,9})", re.ASCII)
_SHOWN_LENGTH = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParams:
    """One request's parameters, already checked. Made by `parse` alone."""

    prompt: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    steps: int
    """Forwards of the transformer."""
    seed: int
    """Of the first picture; picture i uses seed + i."""
    num_images: int
    output_format: str
    acceleration: str
    prompt_expansion: bool
    safety_checker: bool

    @classmethod
    def parse(cls, values: Mapping[str, object], names: Mapping[str, str] = MappingProxyType({})) -> Self:
        """Check loose values and fill in the defaults.

        Args:
            values: by the names of `MEMBERS`. A member that is absent or None takes its default. `size` is a preset's
                name, "WIDTHxHEIGHT", or a mapping with `width` and `height`, where an absent side takes its default.
            names: our member name -> the caller's, as the problems shall say it ({"size": "--size"}).

        Raises:
            InvalidInput: with every problem found.
        """
        assert values.keys() <= {member.name for member in MEMBERS}, f"unknown members: {sorted(values)}"
        checked: dict[str, Any] = {}
        problems: list[Problem] = []
        for member in MEMBERS:
            value, path = values.get(member.name), (names.get(member.name, member.name),)
            try:
                checked[member.name] = member.default(path) if value is None else member.read(value, path)
            except InvalidInput as error:
                problems += error.problems
        if problems:
            raise InvalidInput(problems)
        width, height = checked.pop("size")
        return cls(width=width, height=height, **checked)


def parse_size(value: object, path: tuple[str, ...] = ("size",)) -> tuple[int, int]:
    """A size in pixels (width, height).

    Args:
        value: a preset's name, "WIDTHxHEIGHT", or a mapping with `width` and `height` in pixels.
        path: what the problems call the value.

    Raises:
        InvalidInput: with a problem for each wrong side, or one for a text that is no size.
    """
    if isinstance(value, Mapping):
        return _read_sides(value, path)
    if not isinstance(value, str):
        raise _refused(path, SIZE_RULE, value, "landscape_4_3")
    if value in SIZES:
        return SIZES[value]
    match = _SIZE_PATTERN.fullmatch(value)
    if match is None:
        raise _refused(path, SIZE_RULE, value, closest(value, SIZES) or "1024x768")
    width, height = int(match[1]), int(match[2])
    nearest = nearest_side(width), nearest_side(height)
    if nearest != (width, height):
        raise _refused(path, SIZE_RULE, value, f"{nearest[0]}x{nearest[1]}")
    return width, height


def nearest_side(side: int) -> int:
    """The allowed side, in pixels, that is nearest to `side`; the larger of two equally near."""
    rounded = (side + SIDE_MULTIPLE // 2) // SIDE_MULTIPLE * SIDE_MULTIPLE
    return min(max(rounded, MIN_SIDE), MAX_SIDE)


def closest(value: object, allowed: Sequence[str] | Mapping[str, object]) -> str:
    """The allowed name that `value` is most likely a slip of, or "" when none is near."""
    from difflib import get_close_matches  # only a wrong value needs it

    matches = get_close_matches(value[:100].lower(), list(allowed), n=1, cutoff=0.5) if isinstance(value, str) else []
    return matches[0] if matches else ""


def shown(value: object) -> str:
    """A received value as messages show it: short, one line, and safe for a terminal or a log."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        start = value[:_SHOWN_LENGTH]
        quoted = repr(start) if start.isprintable() else ascii(start)
        return quoted if len(value) <= _SHOWN_LENGTH else f"{quoted}... ({len(value)} characters)"
    return repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _refused(path: tuple[str, ...], rule: str, value: object, nearest: object = "") -> InvalidInput:
    hint = f"nearest valid value: {nearest}" if nearest != "" else ""
    return InvalidInput([Problem(path, f"must be {rule}; got {shown(value)}", value, hint)])


def _read_sides(value: Mapping[object, object], path: tuple[str, ...]) -> tuple[int, int]:
    """Width and height of a mapping; both are checked, so that both problems are told."""
    sides: list[int] = []
    problems: list[Problem] = []
    for name, default in zip(("width", "height"), DEFAULT_SIZE, strict=True):
        side = value.get(name)
        if side is None:
            side = default
        nearest = nearest_side(round(min(max(side, MIN_SIDE), MAX_SIDE))) if _is_number(side) else default
        if _is_whole(side) and side == nearest:
            sides.append(side)
        else:
            problems += _refused((*path, name), SIDE_RULE, side, nearest).problems
    if problems:
        raise InvalidInput(problems)
    return sides[0], sides[1]


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether it is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether something lies near it: an integer or a float, infinities too."""
    return _is_whole(value) or (isinstance(value, float) and not isnan(value))


def _read_prompt(value: object, path: tuple[str, ...]) -> str:
    rule = f"a text of at most {MAX_PROMPT} characters"
    if not isinstance(value, str):
        raise _refused(path, rule, value)
    if len(value) > MAX_PROMPT:
        hint = f"leave out at least {len(value) - MAX_PROMPT} characters"
        raise InvalidInput([Problem(path, f"must be {rule}; got {len(value)}", value, hint)])
    bad = next((char for char in value if char == "\0" or "\ud800" <= char <= "\udfff"), None)
    if bad is not None:
        where = f"U+{ord(bad):04X} at position {value.index(bad)}"
        hint = "remove it; text is UTF-8 without NUL and without halves of surrogate pairs"
        raise InvalidInput([Problem(path, f"must be text; got {where}", value, hint)])
    return value


def whole_number(low: int, high: int) -> Callable[[object, tuple[str, ...]], int]:
    """A reader of integers from `low` to `high`, which raises InvalidInput with the nearest one."""

    def read(value: object, path: tuple[str, ...]) -> int:
        if _is_whole(value) and low <= value <= high:
            return value
        nearest: object = ""
        if _is_number(value):
            nearest = round(min(max(value, low), high))
        raise _refused(path, f"an integer from {low} to {high}", value, nearest)

    return read


def _read_num_images(value: object, path: tuple[str, ...]) -> int:
    """An integer; 2.0 counts as 2, since the published API calls this member a number."""
    if isinstance(value, float) and value.is_integer() and 1 <= value <= MAX_IMAGES:
        value = int(value)
    return whole_number(1, MAX_IMAGES)(value, path)


def _read_seed(value: object, path: tuple[str, ...]) -> int:
    rule = "an integer from 1"
    if not _is_whole(value):
        nearest = max(1, round(value)) if _is_number(value) and not isinf(value) else ""
        raise _refused(path, rule, value, nearest)
    if value < 1:
        raise _refused(path, rule, value, 1)
    if value >= 10**MAX_SEED_DIGITS:
        raise _refused(path, f"{rule} of at most {MAX_SEED_DIGITS} digits", value, value % RANDOM_SEED_LIMIT)
    return value


def _choice(allowed: tuple[str, ...]) -> Callable[[object, tuple[str, ...]], str]:
    """A reader of one word out of `allowed`."""

    def read(value: object, path: tuple[str, ...]) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise _refused(path, f"one of {', '.join(allowed)}", value, closest(value, allowed))

    return read


def _read_flag(value: object, path: tuple[str, ...]) -> bool:
    if isinstance(value, bool):
        return value
    raise _refused(path, "true or false", value)


def _required(path: tuple[str, ...]) -> object:
    raise InvalidInput([Problem(path, "is required", None)])


def _random_seed(_path: tuple[str, ...]) -> int:
    import random  # takes as long to import as this whole file

    return random.randrange(1, RANDOM_SEED_LIMIT)  # no secret: the answer tells it


def _always(default: object) -> Callable[[tuple[str, ...]], object]:
    return lambda _path: default


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter: its name, how it is read and defaulted, and its rule and default as the documents say them."""

    name: str
    read: Callable[[object, tuple[str, ...]], object]
    default: Callable[[tuple[str, ...]], object]
    rule: str
    default_text: str


MEMBERS = (
    Member(
        "prompt",
        _read_prompt,
        _required,
        f"text, at most {MAX_PROMPT} characters (code points); the model reads its first 512 tokens",
        "required",
    ),
    Member("size", parse_size, _always(DEFAULT_SIZE), SIZE_RULE, "landscape_4_3"),
    Member("steps", whole_number(1, MAX_STEPS), _always(MAX_STEPS), f"integer from 1 to {MAX_STEPS}", str(MAX_STEPS)),
    Member(
        "seed",
        _read_seed,
        _random_seed,
        f"integer from 1; picture i uses seed + i; from 2**63 on modulo 2**63; at most {MAX_SEED_DIGITS} digits",
        "random below 2**53",
    ),
    Member("num_images", _read_num_images, _always(1), f"number from 1 to {MAX_IMAGES}; 2.0 is 2", "1"),
    Member("output_format", _choice(OUTPUT_FORMATS), _always("png"), ", ".join(OUTPUT_FORMATS), "png"),
    Member("acceleration", _choice(ACCELERATIONS), _always("regular"), ", ".join(ACCELERATIONS), "regular"),
    Member("prompt_expansion", _read_flag, _always(True), "true or false", "true"),
    Member("safety_checker", _read_flag, _always(True), "true or false", "true"),
)
"""Every parameter of a request, in the order in which problems are told."""
