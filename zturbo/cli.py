"""The command `zturbo`: parse, call, print. Pictures' paths go to stdout, everything said on the way to stderr.

    zturbo generate "a red fox in the snow" --size landscape_16_9 --seed 7
    zturbo serve --port 8000
    zturbo keys create | list | show | update | revoke; usage, logs, balance, backup (see cli_records.py)
    zturbo models list | path NAME | pull NAME | show NAME
    zturbo doctor

Exit codes: 0 done; 2 bad input, told with what was got and what is allowed; 1 anything else that went wrong;
130 stopped with Ctrl-C, which leaves no half file. Heavy modules are imported inside the commands, so that every
--help is instant. ZTURBO_DEBUG=1 shows tracebacks.
"""

import errno
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from zturbo import __version__, cli_records
from zturbo.cli_options import ConfigFile, Json, stoppable, write_path
from zturbo.config import Config, load_config
from zturbo.errors import (
    ConfigError,
    DeviceError,
    DoesNotFit,
    InvalidInput,
    Problem,
    WeightsNotFound,
    ZTurboError,
)
from zturbo.params import ACCELERATIONS, MAX_IMAGES, MAX_STEPS, OUTPUT_FORMATS, SIZES, GenerationParams, shown
from zturbo.pictures import EXTENSIONS, Settings, encode, format_of, slug, write_atomic, write_new

if TYPE_CHECKING:
    from zturbo.engine.engine import Engine
    from zturbo.engine.progress import Picture, Progress
    from zturbo.expansion.expansion import Expansion
    from zturbo.safety.checker import Checker, Safety, Screened

    Show = Callable[[Progress], None]

T = TypeVar("T")
INTERRUPTED = 130
UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EIO)
"""What a write to stdout may end in."""
BAD_INPUT = (WeightsNotFound, ConfigError, DeviceError)
"""Errors in what the user typed or set, beside InvalidInput: a model, device or setting that is not there."""
MAX_STDIN_BYTES = 1 << 20
MAX_FILE_NAME = 250
"""Bytes: file systems take 255, and a number may come to it."""
FLAG_NAMES = {
    "prompt": "PROMPT",
    "size": "--size",
    "steps": "--steps",
    "seed": "--seed",
    "num_images": "--num-images",
    "output_format": "--format",
    "acceleration": "--acceleration",
    "prompt_expansion": "--prompt-expansion",
    "safety_checker": "--safety-checker",
    "output": "--output",
}
"""Our member name -> what this door calls it."""

NO_HELP = {"default_map": {"help": False, "models": {"help": False}, "keys": {"help": False}}}
"""Said outright, for Typer loads pydantic (80 ms) to make sense of an absent flag before the next word's --help."""

app = typer.Typer(
    name="zturbo",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,  # its two options are absent flags as well
    context_settings=NO_HELP,
)
models = typer.Typer(name="models", help="The models known by name: list, find, download and describe them.")
app.add_typer(models)
app.add_typer(cli_records.keys)
app.add_typer(cli_records.records)

Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|FOLDER|FILE", help="A known model, a pulled OWNER/NAME, a folder, a file."),
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:SCALE]", help="Merge an adapter; may be given several times."),
]
TextEncoder = Annotated[
    str | None, typer.Option("--text-encoder", metavar="PATH", help="A text encoder in place of the model's own.")
]
Vae = Annotated[str | None, typer.Option("--vae", metavar="PATH", help="A VAE in place of the model's own.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; the process's own by default.

    Returns:
        the exit code. Errors have been told on stderr by then; with ZTURBO_DEBUG=1 they are raised instead.
    """
    if sys.stdout is None:  # closed by the caller
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name in another script must not hide the whole list
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error, told=code != 0) or code
    return code


def _run(arguments: Sequence[str] | None) -> int:
    """`main`, but for what is left to be written."""
    try:
        code: int | None = app(args=arguments, prog_name="zturbo", standalone_mode=False)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITTEN and error.filename is None:  # files have a name
            return _unwritten(error)
        if os.environ.get("ZTURBO_DEBUG") == "1":
            raise
        return _tell(error)
    if code == INTERRUPTED:
        _say("zturbo: stopped; nothing was left half written")
    return code or 0


def _unwritten(error: OSError, *, told: bool = False) -> int:
    """Send nowhere what stdout did not take, which the interpreter would try to write once more.

    Args:
        told: whether something else has gone wrong, and has been told, before.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno != errno.EPIPE and not told:  # a reader that has seen enough is no error to speak of
        _say(f"zturbo: cannot write the output: {error.strerror}")
    return 0 if told else 1


@app.callback(invoke_without_command=True)
def zturbo(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Draw pictures from text with Z-Image-Turbo, on your own computer."""
    if version:
        print(f"zturbo {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@models.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from stdin.")],
    size: Annotated[
        str | None, typer.Option(metavar="NAME|WxH", help=f"{', '.join(SIZES)}, or WIDTHxHEIGHT in pixels.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N", help=f"Denoising steps, 1 to {MAX_STEPS} (the default).")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="The same seed draws the same picture; random when absent.")
    ] = None,
    num_images: Annotated[
        str | None,
        typer.Option("--num-images", "-n", metavar="N", help=f"1 to {MAX_IMAGES} pictures; number i uses seed + i."),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help=f"{', '.join(OUTPUT_FORMATS)}; else --output decides, else png."
        ),
    ] = None,
    acceleration: Annotated[
        str | None, typer.Option(metavar="LEVEL", help=f"{', '.join(ACCELERATIONS)}: speed against likeness.")
    ] = None,
    model: Model = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, mps, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="auto, float32, bfloat16, float16.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="NAME", help="auto, none, int8, fp8.")] = None,
    lora: Loras = None,
    text_encoder: TextEncoder = None,
    vae: Vae = None,
    prompt_expansion: Annotated[
        bool | None,
        typer.Option("--prompt-expansion/--no-prompt-expansion", help="Let the text model enrich the prompt."),
    ] = None,
    safety_checker: Annotated[
        bool | None, typer.Option("--safety-checker/--no-safety-checker", help="Black out what is not fit for all.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Replaced if it exists; - is stdout; several: a-1.png, ..."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Leave prompt and settings out of the picture's file.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """Draw PROMPT and print where the pictures are."""
    problems: list[Problem] = []
    flags: dict[str, object] = {"model": model, "device": device, "dtype": dtype, "quantization": quantization}
    flags |= {"lora": _one_a_line(lora), "text_encoder": text_encoder, "vae": vae}
    flags |= {"acceleration": acceleration, "metadata": False if no_metadata else None}
    config = _gather(problems, lambda: load_config(flags, config_file))
    values = {
        "prompt": _gather(problems, lambda: _prompt(prompt)),
        "size": size,
        "steps": _number(steps),
        "seed": _number(seed),
        "num_images": _number(num_images),
        "output_format": output_format or _gather(problems, lambda: _format_of(output)),
        "acceleration": config.acceleration if config else None,
        "prompt_expansion": prompt_expansion,
        "safety_checker": safety_checker,
    }
    params = _gather(problems, lambda: GenerationParams.parse(values, FLAG_NAMES))
    if config is None or params is None or problems:
        raise InvalidInput(problems)
    target = Target.choose(output, params, config, as_json)
    _refuse_missing({"prompt_expansion"} if prompt_expansion else set(), config)
    safety = _safety(config, safety_checker)
    _ask_guard(safety, params.prompt)
    expansion = _ask_endpoint(config, params)
    start = time.perf_counter()
    engine = _load(config, quiet)
    load_s = time.perf_counter() - start
    if not quiet:
        _say(safety.row())
    paths: list[Path | None] = []
    flagged: list[bool] = []

    def keep(picture: "Picture", expansion: "Expansion | None") -> None:
        """At once, so that what is drawn is there even if the next picture is stopped."""
        screened = _screen(safety.checker, picture)
        flagged.append(screened.withheld is not None)
        drawn = replace(params, acceleration=engine.levels[params.acceleration].drawn)
        paths.append(_write(screened, target, drawn, config, engine, expansion))
        if paths[-1] is not None and not as_json:
            write_path(paths[-1])

    with stoppable():
        done = _draw(engine, params, quiet, keep, expansion)
    timings = {"load": load_s, **done.timings}
    if as_json:
        print(json.dumps(_summary(engine, params, done, paths, flagged, timings)))
    if not quiet:
        _say(_closing_line(done, timings))


@models.command("list")
def list_models(as_json: Json = False) -> None:
    """The models known by name, and which of them are on this computer."""
    from zturbo.engine.catalog import CATALOG, local_path

    rows = [{"name": one.name, "path": local_path(one), "description": one.description} for one in CATALOG]
    if as_json:
        print(json.dumps([{**row, "path": str(row["path"]) if row["path"] else None} for row in rows]))
        return
    for row in rows:
        print(f"{row['name']:16}{'here' if row['path'] else 'not here':10}{row['description']}")


@models.command("path")
def print_path(name: Annotated[str, typer.Argument(metavar="NAME", help="A known model.")]) -> None:
    """Print the folder or file of a model that is on this computer."""
    from zturbo.engine.catalog import resolve

    write_path(resolve(name)[1])


@models.command()
def pull(name: Annotated[str, typer.Argument(metavar="NAME", help="A known model, or OWNER/NAME of the hub.")]) -> None:
    """Download a model into the hub's cache, resuming what is there, check its hashes, and print its folder."""
    from zturbo.engine.catalog import known, resolve
    from zturbo.weights import hub

    model = known(name)
    if model is not None and model.repository is None:
        path = resolve(name)[1]
        _say(f"{model.name} ships with zturbo: there is nothing to download")
        write_path(path)
        return
    repository = model.repository if model is not None and model.repository is not None else name
    write_path(hub.pull(repository, on_verified=lambda file: _say(f"verified {file}")))


@models.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER|FILE", help="A model that is on this computer.")],
    as_json: Json = False,
) -> None:
    """Describe a model: its version, its networks and their sizes."""
    from zturbo.engine.catalog import resolve
    from zturbo.weights.checkpoint import open_checkpoint

    label, path, known = resolve(name)
    checkpoint = open_checkpoint(path)
    facts: dict[str, Any] = {
        "name": label,
        "version": checkpoint.version,
        "path": str(path),
        "kind": checkpoint.kind,
        "description": known.description if known else None,
        "licence": known.licence if known else None,
        "transformer": asdict(checkpoint.transformer.config),
        "text_encoder": asdict(checkpoint.text_encoder.config) if checkpoint.text_encoder else None,
        "vae": asdict(checkpoint.vae.config) if checkpoint.vae else None,
    }
    if as_json:
        print(json.dumps(facts))
        return
    for fact, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{member}={content}" for member, content in value.items())
        print(f"{fact:14}{value if value is not None else '-'}")


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where to listen; this computer only at first.")
    ] = None,
    port: Annotated[str | None, typer.Option(metavar="N", help="Port to listen on; 8000 at first.")] = None,
    model: Model = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, mps, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="NAME", help="auto, float32, bfloat16, float16.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="NAME", help="auto, none, int8, fp8.")] = None,
    lora: Loras = None,
    text_encoder: TextEncoder = None,
    vae: Vae = None,
    config_file: ConfigFile = None,
) -> None:
    """Answer POST /v1/images/generations, as the published API does, until stopped."""
    flags = {"host": host, "port": port, "model": model, "device": device, "dtype": dtype, "quantization": quantization}
    flags |= {"lora": _one_a_line(lora), "text_encoder": text_encoder, "vae": vae}
    config = load_config(flags, config_file)
    from zturbo.api.serve import run

    run(config, config_file)


@app.command()
def doctor(model: Model = None, as_json: Json = False, config_file: ConfigFile = None) -> None:
    """Say what this computer is, how it would run each known model or --model, and what to do if that does not fit."""
    from zturbo.engine.doctor import examine
    from zturbo.engine.engine import LoadOptions

    report = examine(model, LoadOptions.of(load_config({}, config_file)))
    print(json.dumps(report.as_dict()) if as_json else report.text())


@dataclass(frozen=True, slots=True)
class Target:
    """Where pictures go: to stdout, to files named after `file`, or to new files in `folder`."""

    folder: Path
    file: Path | None
    stdout: bool
    extension: str

    @classmethod
    def choose(cls, output: str | None, params: GenerationParams, config: Config, as_json: bool) -> "Target":
        """Check --output before anything slow begins.

        Raises:
            InvalidInput: it contradicts other flags, or nothing can be written there.
        """
        extension = EXTENSIONS[params.output_format]
        if output == "-":
            _refuse_stdout(params, as_json)
            return cls(Path(), None, True, extension)
        file = Path(output) if output is not None else None
        if file is not None and _format_of(output) != params.output_format:
            raise _refused(
                f"{file.name!r} contradicts --format {params.output_format}", output, "leave one of them out"
            )
        if file is not None and len(os.fsencode(file.name)) > MAX_FILE_NAME:
            raise _refused(f"the name {shown(file.name)} is too long for a file", output, "choose a shorter one")
        if file is not None and os.path.isdir(file):  # noqa: PTH112  # which says no where a path may not be searched
            raise _refused(f"{output!r} is a folder", output, f"name a file in it: {file / ('picture' + extension)}")
        folder = file.parent if file is not None else config.output_dir
        name, received = ("--output", output) if file is not None else ("output_dir", str(folder))
        if not os.path.isdir(folder):  # noqa: PTH112
            raise _refused(f"{str(folder)!r} is no folder", received, "make it first, or choose another one", name)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _refused(f"you may not write to the folder {str(folder)!r}", received, "choose another one", name)
        return cls(folder, file, False, extension)

    def write(self, data: bytes, number: int, params: GenerationParams, seed: int) -> Path | None:
        """Write picture `number` (from 1); returns its path, or None for stdout."""
        if self.stdout:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return None
        if self.file is not None:
            many = params.num_images > 1
            path = self.file.with_stem(f"{self.file.stem}-{number}") if many else self.file
            write_atomic(path, data)
            return path
        return write_new(self.folder, f"{slug(params.prompt)}-{seed % 2**63}", self.extension, data)


def _refuse_stdout(params: GenerationParams, as_json: bool) -> None:
    if params.num_images > 1:
        raise _refused("stdout takes one picture", "-", "leave --num-images out, or name a file")
    if as_json:
        raise _refused("stdout cannot take both the picture and --json", "-", "leave one of them out")
    if sys.stdout.isatty():
        raise _refused("a picture is no text for a terminal", "-", "send stdout to a file or to another program")


def _refused(message: str, received: object, hint: str, name: str = "--output") -> InvalidInput:
    return InvalidInput([Problem((name,), message, received, hint)])


def _format_of(output: str | None) -> str | None:
    """The format that --output's suffix stands for; None where it decides nothing."""
    if output is None or output == "-":
        return None
    try:
        return format_of(Path(output))
    except InvalidInput as error:
        problem = error.problems[0]
        raise InvalidInput([Problem(("--output",), problem.message, output, problem.hint)]) from error


def _gather(problems: list[Problem], check: Callable[[], T]) -> T | None:
    """Run a check; on InvalidInput note its problems and go on, so that all are told at once."""
    try:
        return check()
    except InvalidInput as error:
        problems += error.problems
        return None


def _prompt(text: str) -> str:
    if text != "-":
        return text
    if sys.stdin is None:
        raise InvalidInput([Problem(("PROMPT",), "stdin is closed, so there is nothing to read", None)])
    read = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(read) > MAX_STDIN_BYTES:
        raise InvalidInput([Problem(("PROMPT",), f"stdin has more than {MAX_STDIN_BYTES} bytes", None)])
    try:
        return read.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = f"stdin must be UTF-8 text; byte {error.start} is 0x{error.object[error.start]:02x}"
        raise InvalidInput([Problem(("PROMPT",), message, None)]) from error


def _number(text: str | None) -> object:
    """The number that a flag's text spells, else the text itself; what is wrong with it, `parse` says."""
    if text is None:
        return None
    if re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?[0-9]{1,300}\.[0-9]{1,300}", text) else text


def _one_a_line(texts: list[str] | None) -> str | None:
    """What a flag was given, a line for each time."""
    return "".join(f"{text}\n" for text in texts) if texts else None


def _load(config: Config, quiet: bool) -> "Engine":
    """The engine, as settings and flags ask, with its start-up block told on stderr."""
    from zturbo.engine.engine import Engine

    report = (lambda _line: None) if quiet else _say
    engine = Engine.load_configured(config, report)
    if not quiet:
        _say(engine.block())
        if engine.model.is_nano:
            _say(_nano_line(engine.model.description))
    return engine


def _nano_line(description: str) -> str:
    return (
        f"nano answers, {description}; for everything else run `zturbo models pull z-image-turbo` once, "
        "then add --model z-image-turbo"
    )


def _refuse_missing(asked: set[str], config: Config) -> None:
    """Asking by name for what the engine lacks is an error; the defaults take what there is."""
    if not asked:
        return
    from zturbo.engine.engine import Engine

    missing = sorted(asked - Engine.features)
    names = [f"--{name.replace('_', '-')}" for name in missing]
    hint = "leave the flag out: it is on wherever it is available"
    problems = [Problem((name,), "is not available in this version", True, hint) for name in names]
    if "prompt_expansion" in asked and config.expansion_provider == "none":
        hint = "leave the flag out, or set expansion_provider to local"
        problems.append(Problem(("--prompt-expansion",), "the setting expansion_provider is none", True, hint))
    if problems:
        raise InvalidInput(problems)


def _ask_endpoint(config: Config, params: GenerationParams) -> "Expansion | None":
    """What the settings' chat endpoint makes of the prompt; None where it is not its to expand."""
    if not params.prompt_expansion or config.expansion_provider != "endpoint":
        return None
    import asyncio
    from contextlib import aclosing

    from zturbo.expansion.endpoint import ChatEndpoint

    async def ask() -> "Expansion":
        async with aclosing(ChatEndpoint.configured(config)) as endpoint:
            return await endpoint.expand(params.prompt)

    return asyncio.run(ask())


def _draw(
    engine: "Engine",
    params: GenerationParams,
    quiet: bool,
    keep: Callable[["Picture", "Expansion | None"], None],
    expansion: "Expansion | None",
) -> "Progress":
    """Draw, showing progress and keeping each picture when it is drawn; the last progress has all of them.

    expansion: of the prompt, where it was found outside the engine.
    """
    drawn = params if expansion is None else expansion.applied_to(params)
    with _meter(quiet, params.num_images * params.steps) as show_progress:
        for progress in engine.draw(drawn):
            show_progress(progress)
            if progress.stage == "drawn":
                (picture,) = progress.pictures
                keep(picture, expansion or progress.expansion)
    return replace(progress, expansion=expansion or progress.expansion)


@contextmanager
def _meter(quiet: bool, total: int) -> Iterator["Show"]:
    """Shows progress on stderr: a bar on a terminal, a line a step elsewhere, nothing when quiet."""
    if quiet:
        yield lambda _progress: None
    elif sys.stderr.isatty():
        with _bar(total) as show_progress:
            yield show_progress
    else:
        yield _lines(total)


@contextmanager
def _bar(total: int) -> Iterator["Show"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps, left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encode", total=total)
        yield lambda progress: bar.update(task, completed=_steps_done(progress), description=_stage(progress))


def _lines(total: int) -> "Show":
    """One line a step, with the time left as the steps so far let expect."""
    start = time.perf_counter()

    def show_progress(progress: "Progress") -> None:
        done = _steps_done(progress)
        if progress.stage == "denoise" and progress.step:
            left = (time.perf_counter() - start) / done * (total - done)
            _say(f"{_stage(progress)}: step {progress.step} of {progress.steps}, about {left:.0f} s left")
        elif progress.stage in ("expand", "encode", "decode"):
            _say(_stage(progress))

    return show_progress


def _steps_done(progress: "Progress") -> int:
    return progress.image * progress.steps + progress.step


def _stage(progress: "Progress") -> str:
    which = f" {progress.image + 1} of {progress.images}" if progress.images > 1 else ""
    return f"{progress.stage}{which if progress.stage not in ('expand', 'encode') else ''}"


def _safety(config: Config, wanted: bool | None) -> "Safety":
    """What judges the pictures, as the flag and the settings ask; ready before anything slow begins."""
    if wanted and config.safety_checker == "none":
        message, hint = "the setting safety_checker is none", "leave the flag out, or set it to bundled"
        raise InvalidInput([Problem(("--safety-checker",), message, True, hint)])
    from zturbo.safety.checker import Safety
    from zturbo.safety.load import load_safety

    return Safety() if wanted is False and config.safety_policy != "always" else load_safety(config)


def _ask_guard(safety: "Safety", prompt: str) -> None:
    """Have the prompt checked, where the settings name a guard."""
    guard = safety.guard
    if guard is None:
        return
    import asyncio
    from contextlib import aclosing

    async def ask() -> None:
        async with aclosing(guard):
            await guard.allow(prompt)

    asyncio.run(ask())


def _screen(checker: "Checker | None", picture: "Picture") -> "Screened":
    """Judge a picture; that it is withheld is said even when quiet, as an error is."""
    from zturbo.safety.checker import screen

    screened = screen(checker, picture)
    if screened.verdict is not None and screened.withheld is not None:
        score = f"score {screened.verdict.score:.2f}, threshold {screened.verdict.threshold:g}"
        _say(f"zturbo: seed {picture.seed} is {screened.withheld.as_infotext()} ({score}): it is a black picture")
    return screened


def _write(
    screened: "Screened",
    target: Target,
    params: GenerationParams,
    config: Config,
    engine: "Engine",
    expansion: "Expansion | None",
) -> Path | None:
    """Encode and write one picture; its path, or None for stdout."""
    picture = screened.picture
    settings = Settings.of(params, picture.seed, engine.model.name, engine.model.version)
    if expansion is not None and expansion.applied:
        settings = replace(settings, drawn_prompt=expansion.for_seed(picture.seed).text)
    data = encode(picture.pixels, params.output_format, screened.withheld or (settings if config.metadata else None))
    return target.write(data, picture.seed - params.seed + 1, params, picture.seed)


def _summary(
    engine: "Engine",
    params: GenerationParams,
    done: "Progress",
    paths: Sequence[Path | None],
    flagged: Sequence[bool],
    timings: dict[str, float],
) -> dict[str, object]:
    """The JSON object of `generate --json`; timings in seconds."""
    return {
        "images": [
            {
                "path": str(path),
                "seed": one.seed,
                "flagged": withheld,
                "drawn_prompt": done.expansion.for_seed(one.seed).text if done.expansion else params.prompt,
            }
            for path, one, withheld in zip(paths, done.pictures, flagged, strict=True)
        ],
        "prompt": params.prompt,
        "drawn_prompt": done.expansion.text if done.expansion else params.prompt,
        "prompt_expansion": done.expansion.as_dict() if done.expansion else None,
        "width": params.width,
        "height": params.height,
        "steps": params.steps,
        "acceleration": done.level,
        "output_format": params.output_format,
        "model": engine.model.name,
        "model_version": engine.model.version,
        "version": __version__,
        "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
    }


def _closing_line(done: "Progress", timings: dict[str, float]) -> str:
    seeds = ", ".join(str(picture.seed) for picture in done.pictures)
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())
    return f"seed {seeds}; {parts}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def exit_code(error: type[ZTurboError]) -> int:
    """What the command ends with: 2 where the input is wrong, 1 where it could not be done."""
    return 2 if issubclass(error, (InvalidInput, *BAD_INPUT)) and not issubclass(error, DoesNotFit) else 1


def _tell(error: Exception) -> int:
    """One message on stderr, and the exit code."""
    if isinstance(error, InvalidInput):
        _say("\n".join(f"zturbo: {problem}" for problem in error.problems))
        return exit_code(type(error))
    if isinstance(error, ZTurboError):
        _say(f"zturbo: {error}")
        return exit_code(type(error))
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"\n  hint: {context.command_path} --help" if context is not None else ""
        _say(f"zturbo: {error.format_message()}{hint}")
        return error.exit_code
    _say(f"zturbo: internal error, {type(error).__name__}: {error}\n  hint: ZTURBO_DEBUG=1 shows where")
    return 1
