"""The settings: one table, `Config`, read from flags, then the environment, then a file, then the defaults.

The setting `name` is the environment variable `ZTURBO_NAME` and the member `name` of a TOML file: the one that
`--config` or `ZTURBO_CONFIG` names, else `~/.config/zturbo/config.toml` where that exists. An empty environment
variable counts as absent. A wrong value or an unknown member is refused with where it stands, what was received and
what is allowed.

Imports no torch: `zturbo --help` reads this file.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from zturbo.errors import ConfigError, InvalidInput, Problem
from zturbo.params import ACCELERATIONS, closest, shown
from zturbo.pricing import CREDITS_PER_MEGAPIXEL

ENVIRONMENT_PREFIX = "ZTURBO_"
CONFIG_VARIABLE = "ZTURBO_CONFIG"
DEFAULT_FILE = Path("~/.config/zturbo/config.toml")
MAX_THREADS = 1024
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class _RefusedError(ValueError):
    """A reader's answer to a value that is not allowed."""


def _text(value: object) -> str:
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise _RefusedError


def _word(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise _RefusedError(closest(value, allowed))

    return read


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise _RefusedError

    return read


def _key(value: object) -> str:
    if isinstance(value, str) and (value == "" or re.fullmatch(r"[0-9a-f]{32}", value, re.ASCII)):
        return value
    raise _RefusedError


def _file(value: object) -> str:
    return "" if value == "" else str(_folder(value))


def _adapters(value: object) -> str:
    text = "" if value == "" else _text(value)
    adapters_of(text)
    return text


def adapters_of(text: str) -> tuple[tuple[Path, float], ...]:
    """The adapters of the setting `lora` with the scale of each: a line for each, or commas between them.

    The flags of a command line become lines, for a file's name may have a comma.
    """
    parts = text.rstrip("\n").split("\n") if "\n" in text else text.split(",")
    return tuple(_adapter(part.strip()) for part in parts) if text.strip() else ()


def _adapter(text: str) -> tuple[Path, float]:
    """FILE[:SCALE]; a file of that whole name wins."""
    name, colon, scale = text.rpartition(":")
    there = os.path.exists(text)  # noqa: PTH110  # pathlib's raises where a name is too long
    if not colon or there or not re.fullmatch(r"[+-]?([0-9]*\.)?[0-9]+|[+-]?(inf|nan)", scale):
        return _folder(text), 1.0
    if not name or not math.isfinite(float(scale)):
        raise _RefusedError(f"{name or 'FILE'}:1.0")
    return _folder(name), float(scale)


def _names(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"([\w./:-]+(\s*,\s*[\w./:-]+)*)?", value, re.ASCII):
        return value
    raise _RefusedError


def _labels(value: object) -> str:
    """Names as classifiers give them to what they see: words of any language, with spaces between them."""
    if value == "":
        return ""
    parts = [part.strip() for part in _text(value).split(",")]
    if all(part and part.isprintable() for part in parts):
        return str(value)
    raise _RefusedError


def _address(value: object) -> str:
    if value == "":
        return ""
    host = r"([^\s/?#@]*@)?(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)"
    found = re.fullmatch(rf"https?://{host}(:(?P<port>\d{{1,5}}))?(/[^\s?#]*)?", _text(value), re.ASCII)
    if found is None or int(found["port"] or 0) > 65535:
        raise _RefusedError
    return found[0].rstrip("/")


def _endpoint(value: object) -> str:
    address = _address(value)
    if "@" in address:  # a password there would be in every log line of the client
        raise _RefusedError
    return address


def _one_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-~]{0,200}", value, re.ASCII):
        return value
    raise _RefusedError


def _token(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-~]{0,512}", value, re.ASCII):
        return value
    raise _RefusedError


def _share(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(r"\d*\.?\d+(e-?\d{1,3})?", value, re.ASCII):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise _RefusedError


def _folder(value: object) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError:  # "~name" of nobody
        raise _RefusedError from None


def _kept_folder(value: object) -> Path:
    """A folder as it was written: `~` is made out where it is used, for whoever runs the server."""
    _folder(value)
    return Path(str(value))


def _flag(value: object) -> bool:
    if isinstance(value, int) and value in (0, 1):  # True and False are such integers
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise _RefusedError


def _setting(
    default: object, read: Callable[[object], object], allowed: str, help_text: str, secret: bool = False
) -> Any:
    return field(
        default=default,
        repr=not secret,
        metadata={"read": read, "allowed": allowed, "help": help_text, "secret": secret},
    )


_DEVICES = ("auto", "cpu", "mps", "cuda")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_EXPANSION_PROVIDERS = ("local", "endpoint", "none")
_LOG_FORMATS = ("auto", "text", "json")
_GUARD_LEVELS = ("unsafe", "controversial")
_POLICIES = ("caller", "always")
_ATTENTIONS = ("auto", "fa3", "cudnn", "flash", "sdpa", "math")
_QUANTIZATIONS = ("auto", "none", "int8", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting, checked. Made by `load_config`."""

    model: str = _setting(
        "nano", _text, "a model's name, a pulled OWNER/NAME, a folder or a file", "The model that draws."
    )
    lora: str = _setting(
        "",
        _adapters,
        "FILE or FILE:SCALE with a finite scale, several separated by commas",
        "Adapters (LoRA, LoKr) that are merged into the model while it is loaded, in this order.",
    )
    text_encoder: str = _setting("", _file, "a file or a folder", "A text encoder in place of the model's own.")
    vae: str = _setting("", _file, "a file or a folder", "A VAE in place of the model's own.")
    device: str = _setting("auto", _word(*_DEVICES), ", ".join(_DEVICES), "Where it runs; auto takes the fastest.")
    dtype: str = _setting(
        "auto", _word(*_DTYPES), ", ".join(_DTYPES), "The number format of the computation; auto takes what is safe."
    )
    quantization: str = _setting(
        "auto",
        _word(*_QUANTIZATIONS),
        ", ".join(_QUANTIZATIONS),
        "How weights are held in memory; auto quantizes only where the model would not fit.",
    )
    attention: str = _setting(
        "auto",
        _word(*_ATTENTIONS),
        ", ".join(_ATTENTIONS),
        "The attention kernel on CUDA; auto tries them at the start and takes the best that works.",
    )
    acceleration: str = _setting(
        "regular",
        _word(*ACCELERATIONS),
        ", ".join(ACCELERATIONS),
        "The level of `zturbo generate` without --acceleration. A server makes it ready first; a request that names "
        "none is drawn at regular, as the published API says.",
    )
    threads: int = _setting(
        0,
        _whole(0, MAX_THREADS),
        f"an integer from 0 to {MAX_THREADS}",
        "CPU threads of the computation; 0 takes PyTorch's number, at most what the control group allows.",
    )
    output_dir: Path = _setting(  # noqa: RUF009  # it is a dataclasses.field
        Path(), _folder, "a folder", "Where pictures are put when no output file is named; the current folder at first."
    )
    metadata: bool = _setting(
        True,
        _flag,
        "true, false (also 1, 0, yes, no, on, off)",
        "Whether prompt and settings are written into pictures. That a machine drew them is always written.",
    )
    host: str = _setting(
        "127.0.0.1", _text, "an address of this computer", "The address that `zturbo serve` listens on."
    )
    port: int = _setting(8000, _whole(1, 65535), "an integer from 1 to 65535", "The port of `zturbo serve`.")
    api_key: str = _setting(
        "",
        _key,
        "32 lower-case hex characters, as `openssl rand -hex 16` makes them",
        "A bearer key with every scope. When absent, the first start of `zturbo serve` makes one and prints it once.",
        secret=True,
    )
    data_dir: Path = _setting(  # noqa: RUF009  # it is a dataclasses.field
        Path("~/.local/share/zturbo"),
        _kept_folder,
        "a folder",
        "Where `zturbo serve` keeps its records (`records.sqlite`) and the pictures it hands out (`files/`).",
    )
    public_url: str = _setting(
        "",
        _address,
        "an http or https address",
        "The address that clients see, for the pictures' links, when a proxy stands before the server; "
        "absent, it is taken from each request.",
    )
    model_aliases: str = _setting(
        "",
        _names,
        "names, separated by commas",
        "Further names that requests may give the model, as clients of other services send them. "
        "Pictures asked for by a name of gpt-image-... come as base64 unless the request says otherwise.",
    )
    local_sessions: bool = _setting(
        True,
        _flag,
        "true, false (also 1, 0, yes, no, on, off)",
        "Whether the playground works without a key for whoever sits at the server's own computer.",
    )
    queue_limit: int = _setting(
        32,
        _whole(1, 100_000),
        "an integer from 1 to 100000",
        "Requests that may wait; further ones are told to come back. From 8 on, a key may have three quarters of what "
        "other keys leave.",
    )
    rate_limit: int = _setting(
        0, _whole(0, 1_000_000), "an integer from 0 to 1000000", "Requests a minute of each key; 0 is unlimited."
    )
    concurrency_limit: int = _setting(
        0, _whole(0, 100_000), "an integer from 0 to 100000", "Requests at once of each key; 0 is unlimited."
    )
    request_timeout_s: int = _setting(
        600, _whole(1, 86_400), "an integer from 1 to 86400", "Seconds that a request may wait and run."
    )
    shutdown_grace_s: int = _setting(
        30, _whole(0, 3600), "an integer from 0 to 3600", "Seconds that running requests have to end at a shutdown."
    )
    retention_days: int = _setting(
        0, _whole(0, 36_500), "an integer from 0 to 36500", "Days that pictures are kept; 0 is for ever."
    )
    credits_per_megapixel: int = _setting(
        CREDITS_PER_MEGAPIXEL,
        _whole(0, 100_000_000),
        "an integer from 0 to 100000000",
        "The price of each started megapixel of a picture; 2,000,000 credits are one US dollar.",
    )
    c2pa_certificate: str = _setting(
        "",
        _file,
        "a file",
        "The certificate chain (PEM) that signs C2PA content credentials into the pictures of `zturbo serve`; "
        "absent, none are written.",
    )
    c2pa_key: str = _setting("", _file, "a file", "The private key (PEM, PKCS#8) of `c2pa_certificate`.")
    log_format: str = _setting(
        "auto",
        _word(*_LOG_FORMATS),
        ", ".join(_LOG_FORMATS),
        "How the server logs; auto is text on a terminal, else json.",
    )

    expansion_provider: str = _setting(
        "local",
        _word(*_EXPANSION_PROVIDERS),
        ", ".join(_EXPANSION_PROVIDERS),
        "What adds details to prompts: the model's own text encoder, a chat model at an endpoint, or nothing.",
    )
    expansion_url: str = _setting(
        "",
        _endpoint,
        "an http or https address without a password in it",
        "The OpenAI-compatible endpoint of the provider `endpoint`, such as http://127.0.0.1:11434/v1.",
    )
    expansion_key: str = _setting(
        "", _token, "at most 512 visible ASCII characters", "The bearer key of that endpoint, if it wants one.", True
    )
    expansion_model: str = _setting(
        "", _one_name, "at most 200 visible ASCII characters", "The chat model's name at that endpoint."
    )
    expansion_timeout_s: int = _setting(
        8,
        _whole(1, 120),
        "an integer from 1 to 120",
        "Seconds that the endpoint may take; then the prompt is drawn as it is.",
    )
    safety_checker: str = _setting(
        "bundled",
        _text,
        "bundled, none, OWNER/NAME of the hub, or a folder",
        "What judges pictures before they are handed out: the bundled classifier, none, or an image-classification "
        "model of the transformers library (`pip install '.[safety]'` in zturbo's folder).",
    )
    safety_threshold: float = _setting(
        0.7, _share, "a number above 0, at most 1", "The lowest score, from 0 to 1, of a picture that is withheld."
    )
    safety_labels: str = _setting(
        "",
        _labels,
        "names, separated by commas",
        "Which labels of the model in safety_checker count as unsafe; absent, the well-known ones (nsfw, porn, ...).",
    )
    safety_policy: str = _setting(
        "caller",
        _word(*_POLICIES),
        ", ".join(_POLICIES),
        "Who decides whether pictures are checked: the request, where its key has the scope safety:off; or always on.",
    )
    prompt_guard_url: str = _setting(
        "",
        _endpoint,
        "an http or https address without a password in it",
        "The OpenAI-compatible endpoint of a guard model that checks prompts before they are drawn; absent, none does.",
    )
    prompt_guard_key: str = _setting(
        "", _token, "at most 512 visible ASCII characters", "The bearer key of that endpoint, if it wants one.", True
    )
    prompt_guard_model: str = _setting(
        "Qwen/Qwen3Guard-Gen-0.6B",
        _one_name,
        "at most 200 visible ASCII characters",
        "The guard model's name at that endpoint; it must answer as Qwen3Guard-Gen does.",
    )
    prompt_guard_refuses: str = _setting(
        "unsafe",
        _word(*_GUARD_LEVELS),
        ", ".join(_GUARD_LEVELS),
        "Which prompts are refused: those that the guard calls unsafe, or those it calls controversial as well.",
    )
    prompt_guard_timeout_s: int = _setting(
        10,
        _whole(1, 120),
        "an integer from 1 to 120",
        "Seconds that the guard may take for an attempt; after two the request fails.",
    )

    @property
    def records_file(self) -> Path:
        """The database of `zturbo serve`."""
        return self._data_folder / "records.sqlite"

    @property
    def files_dir(self) -> Path:
        """The folder of the pictures that `zturbo serve` hands out."""
        return self._data_folder / "files"

    @property
    def _data_folder(self) -> Path:
        try:
            return self.data_dir.expanduser()
        except RuntimeError as error:  # a user without a home folder, as in some containers
            raise ConfigError(f"data_dir is {self.data_dir}, and this user has no home folder",
                              "set ZTURBO_DATA_DIR to a folder") from error  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    name: str
    default: object
    read: Callable[[object], object]
    """Loose value -> checked value."""
    allowed: str
    """What is allowed, for people."""
    help: str
    secret: bool
    """Whether messages must not show what was received."""

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    def shown(self, value: object) -> str:
        """A received value as messages show it."""
        return "a value that is not shown here" if self.secret else shown(value)


SETTINGS = tuple(
    Setting(
        row.name,
        row.default,
        row.metadata["read"],
        row.metadata["allowed"],
        row.metadata["help"],
        row.metadata["secret"],
    )
    for row in fields(Config)
)


def load_config(
    flags: Mapping[str, object] | None = None,
    file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Read every setting from the first place that has it.

    Args:
        flags: setting name -> value given on the command line; None counts as absent.
        file: TOML file to read in place of the one that the environment names or the default one.
        environment: variable name -> text.

    Raises:
        InvalidInput: wrong flags, all of them.
        ConfigError: the file cannot be read or has unknown members, or values of the file or the environment are
            wrong: all of them, each with where it came from; or a setting lacks another that it needs.
    """
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    assert flags.keys() <= {setting.name for setting in SETTINGS}, f"flags without a setting: {sorted(flags)}"
    values = _read_flags(flags)
    path = _file_path(file, environment)
    in_file = _read_file(path) if path else {}
    problems = [_unknown(name, path) for name in in_file if name not in {setting.name for setting in SETTINGS}]
    for setting in SETTINGS:
        source, value = _first(setting, in_file, path, environment)
        if setting.name in values or source is None:
            continue
        try:
            values[setting.name] = setting.read(value)
        except _RefusedError as error:
            problems.append(f"{source}: must be {setting.allowed}; got {setting.shown(value)}{_nearest(error)}")
    if problems:
        raise ConfigError("\n".join(problems), "`docs/reference/settings.md` lists the settings")
    config = Config(**values)
    _check_together(config)
    return config


def _read_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for setting in SETTINGS:
        if setting.name not in flags:
            continue
        received = flags[setting.name]
        try:
            values[setting.name] = setting.read(received)
        except _RefusedError as error:
            message = f"must be {setting.allowed}; got {setting.shown(received)}"
            hint = f"nearest valid value: {error}" if str(error) else ""
            problems.append(
                Problem((f"--{setting.name.replace('_', '-')}",), message, None if setting.secret else received, hint)
            )
    if problems:
        raise InvalidInput(problems)
    return values


def _check_together(config: Config) -> None:
    """Settings that need each other."""
    missing = [name for name in ("expansion_url", "expansion_model") if not getattr(config, name)]
    if config.expansion_provider == "endpoint" and missing:
        names = " and ".join(f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in missing)
        raise ConfigError("expansion_provider is endpoint, but which one is not said", f"set {names}")
    if config.safety_policy == "always" and config.safety_checker == "none":
        hint = "set safety_checker to bundled or to a model, or safety_policy to caller"
        raise ConfigError("safety_policy is always, and safety_checker is none", hint)


def _file_path(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The settings file to read, or None.

    Raises:
        ConfigError: the environment names one in the home folder of nobody.
    """
    if file is not None:
        return file
    if named := environment.get(CONFIG_VARIABLE):
        try:
            return Path(named).expanduser()
        except RuntimeError as error:  # "~name" of nobody, or "~" of a user without a home folder
            raise ConfigError(f"cannot read the settings file {named}: there is no such home folder",
                              f"set {CONFIG_VARIABLE} to the file's whole path") from error  # fmt: skip
    try:
        default = DEFAULT_FILE.expanduser()
        return default if default.is_file() else None
    except (RuntimeError, OSError):  # no home folder, or one of another user, as in some containers
        return None


def _read_file(path: Path) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin it with a mark
    except (OSError, ValueError) as error:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the settings file {path}: {reason}") from error


def _unknown(name: str, path: Path | None) -> str:
    near = closest(name, [setting.name for setting in SETTINGS])
    known = f"did you mean {near}?" if near else f"known: {', '.join(setting.name for setting in SETTINGS)}"
    return f"{path}: no setting is called {shown(name)}; {known}"


def _first(
    setting: Setting, in_file: Mapping[str, object], path: Path | None, environment: Mapping[str, str]
) -> tuple[str | None, object]:
    """Where a setting is given, in words, and its value there: the environment, then the file; (None, None) if not."""
    if value := environment.get(setting.variable):
        return f"environment variable {setting.variable}", value
    if setting.name in in_file:
        return f"{path}, {setting.name}", in_file[setting.name]
    return None, None


def _nearest(error: _RefusedError) -> str:
    return f" (nearest valid value: {error})" if str(error) else ""
