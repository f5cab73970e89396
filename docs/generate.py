"""Write docs/reference/ from the code itself.

    python docs/generate.py            write the pages
    python docs/generate.py --check    change nothing; exit 1 with a diff when a page is not what the code says

What a page says stands in the code: a command's help, a setting's row, an error's docstring, a parameter's rule.
"""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from zturbo import config, params
from zturbo.cli import app
from zturbo.errors import InvalidInput, ZTurboError

FOLDER = Path(__file__).parent / "reference"
NOTICE = "<!-- Written by docs/generate.py from the code; edit that, then run `make fix`. -->"


def main(arguments: list[str]) -> int:
    """Write or check every page; returns the exit code."""
    pages = {FOLDER / name: page() for name, page in PAGES.items()}
    strangers = [path for path in sorted(FOLDER.glob("*")) if path not in pages]
    if "--check" in arguments:
        stale = [line for path, text in pages.items() for line in difference(path, text)]
        stale += [f"{path} is written by nobody\n" for path in strangers]
        sys.stdout.writelines(stale)
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


def difference(path: Path, text: str) -> Iterator[str]:
    """The diff from a page on disk to what it should be; nothing when they are equal."""
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    return difflib.unified_diff(
        found.splitlines(keepends=True), text.splitlines(keepends=True), str(path), f"{path}, as the code says"
    )


def page(title: str, *parts: str) -> str:
    """A page of paragraphs."""
    return "\n\n".join([f"# {title}", NOTICE, *(part.strip() for part in parts if part.strip())]) + "\n"


def cli_page() -> str:
    """Every command with its arguments and options."""
    command = typer.main.get_command(app)
    exits = "Exit codes: 0 done; 2 bad input; 1 any other error; 130 stopped with Ctrl-C, which leaves no half file."
    said = "Results go to stdout, everything else to stderr. `ZTURBO_DEBUG=1` in the environment shows tracebacks."
    return page("The command line", exits, said, *_command_parts(command, "zturbo"))


def _command_parts(command: Any, path: str) -> Iterator[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = [path, *(argument.metavar for argument in arguments), "[OPTIONS]" if options else ""]
    yield f"## {path}"
    yield "" if getattr(command, "commands", None) else f"```text\n{' '.join(filter(None, usage))}\n```"
    yield inspect.cleandoc(command.help or "")
    for argument in arguments:
        yield f"### `{argument.metavar}`"
        yield argument.help or ""
    for option in options:
        names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        takes = f" `{option.metavar}`" if option.metavar and not option.is_flag else ""
        yield f"### {names}{takes}"
        yield option.help or ""
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from _command_parts(child, f"{path} {name}")


def settings_page() -> str:
    """Every setting."""
    parts = (inspect.getdoc(config) or "").split("\n\n")[:2]
    for row in config.SETTINGS:
        default = str(row.default).lower() if isinstance(row.default, bool) else str(row.default)
        parts += [f"## `{row.name}`", row.help]
        parts.append(f"- Environment: `{row.variable}`\n- Allowed: {row.allowed}\n- Default: `{default}`")
    return page("Settings", *parts)


def errors_page() -> str:
    """Every error that is raised on purpose."""
    module = inspect.getmodule(ZTurboError)
    parts = [_tree_fenced(inspect.getdoc(module) or "")]
    for error in _errors(ZTurboError):
        exit_code = 2 if issubclass(error, InvalidInput) else 1
        parts += [f"## {error.__name__}", _summary(error)]
        parts.append(f"HTTP status {error.status}, code `{error.code}`; the command line exits with {exit_code}.")
    return page("Errors", *parts)


def _errors(error: type[ZTurboError]) -> Iterator[type[ZTurboError]]:
    yield error
    for child in error.__subclasses__():
        if child.__module__ == ZTurboError.__module__:
            yield from _errors(child)


def _summary(thing: object) -> str:
    """A docstring without its sections."""
    return (inspect.getdoc(thing) or "").split("\n\nArgs:")[0]


def _tree_fenced(text: str) -> str:
    """The docstring's paragraphs; the drawn tree becomes a block of code."""
    parts = text.split("\n\n")
    return "\n\n".join(f"```text\n{part}\n```" if "├──" in part else part for part in parts)


def parameters_page() -> str:
    """Every parameter of a request, and the named sizes."""
    intro = (
        "The limits of one request, the same through every door. `zturbo/params.py` is the only place that checks them."
    )
    parts = [intro]
    for member in params.MEMBERS:
        parts += [f"## `{member.name}`", f"- Allowed: {member.rule}\n- Default: {member.default_text}"]
    rows = "\n".join(f"| `{name}` | {width} | {height} |" for name, (width, height) in params.SIZES.items())
    return page("Parameters", *parts, "## Sizes", f"| name | width | height |\n|---|---|---|\n{rows}")


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "settings.md": settings_page,
    "errors.md": errors_page,
    "parameters.md": parameters_page,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
