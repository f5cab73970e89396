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
from zturbo.api import openapi
from zturbo.api.images import PATHS
from zturbo.api.operations import OPERATIONS
from zturbo.api.schemas import DELIVERIES, MAX_PARTIAL_IMAGES, MODEL, NAMES
from zturbo.cli import FLAG_NAMES, app, exit_code
from zturbo.errors import ZTurboError
from zturbo.params import DEFAULT_SIZE

FOLDER = Path(__file__).parent / "reference"
HTTP_ONLY = f"""\
## HTTP only

| member | allowed | default |
|---|---|---|
| `model` | {MODEL}, or a name of the server's (`/v1/models`) | required |
| `response_format` | {" or ".join(DELIVERIES)}; `output_format` with one of these counts as it | {DELIVERIES[0]} |
| `stream` | true or false | false |
| `partial_images` | integer from 0 to {MAX_PARTIAL_IMAGES}: previews of each picture in a stream | 0 |
| `n` | as `num_images`, which wins | |
| `size` | "auto", or WIDTHxHEIGHT, brought to the nearest size that can be drawn; `image_size` wins | |

An `image_size` may be an object of `width` ({DEFAULT_SIZE[0]} where it is left out) and `height` ({DEFAULT_SIZE[1]}).
`null` counts as absent. A model's name that begins with gpt-image- makes {DELIVERIES[1]} the default."""
ERROR_BODY = """\
Over HTTP an error is a JSON object (shortened here); `code` is for programs, `issues` has every mistake of a body:

```json
{
  "requestId": "7c1f...", "statusCode": 400, "path": "/v1/images/generations",
  "message": "Body validation error\\nnum_inference_steps: must be an integer from 1 to 8; got 9 (nearest ...)",
  "error": {
    "code": "invalid_value", "param": "num_inference_steps", "type": "invalid_request_error",
    "data": {"kind": "err_validation", "issues": [{
      "path": ["num_inference_steps"], "message": "must be an integer from 1 to 8; got 9",
      "received": 9, "hint": "nearest valid value: 8"
    }]}
  }
}
```

Where credits are lacking (403), `kind` is `err_insufficent_credits`, the published API's spelling.

Three codes are of the routes alone: `not_found` (404, no such address), `method_not_allowed` (405), `bad_request`."""
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
        default = f"`{default}`" if default else "none"
        parts += [f"## `{row.name}`", row.help]
        parts.append(f"- Environment: `{row.variable}`\n- Allowed: {row.allowed}\n- Default: {default}")
    return page("Settings", *parts)


def errors_page() -> str:
    """Every error that is raised on purpose."""
    module = inspect.getmodule(ZTurboError)
    parts = [_tree_fenced(inspect.getdoc(module) or ""), ERROR_BODY]
    for error in _errors(ZTurboError):
        parts += [f"## {error.__name__}", _summary(error)]
        parts.append(
            f"HTTP status {error.status}, code `{error.code}`; the command line exits with {exit_code(error)}."
        )
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
        "The limits of one request, the same through every door; `zturbo/params.py` alone checks them. "
        "The headings are the names in Python. HTTP takes some more, which come after them; members that it does not "
        "know are left aside, as the published API does."
    )
    parts = [intro]
    for member in params.MEMBERS:
        doors = f"- HTTP: `{NAMES[member.name]}`\n" if member.name in NAMES else ""
        doors += f"- Command line: `{FLAG_NAMES[member.name]}`\n" if member.name in FLAG_NAMES else ""
        parts += [f"## `{member.name}`", f"{doors}- Allowed: {member.rule}\n- Default: {member.default_text}"]
    rows = "\n".join(f"| `{name}` | {width} | {height} |" for name, (width, height) in params.SIZES.items())
    parts.append(HTTP_ONLY)
    return page("Parameters", *parts, "## Sizes", f"| name | width | height |\n|---|---|---|\n{rows}")


def http_page() -> str:
    """Every route: what `/openapi.json` holds, in short, and what stands in no document for generators."""
    whole = openapi.document("", (config.Config().model,), OPERATIONS)
    intro = (
        "Every route of the server. A running one has all members with their types at `/openapi.json` and `/docs`. "
        "A key goes into `Authorization: Bearer <key>`; [errors](errors.md) have one form. "
        "`HEAD` is answered wherever `GET` is."
    )
    parts = [intro]
    for path, methods in whole["paths"].items():
        for method, operation in methods.items():
            parts += [f"## `{method.upper()} {path}`", *_operation(operation)]
    parts += ["## Other addresses", "\n".join(f"- `{path}`: {what}" for path, what in OTHER_ADDRESSES.items())]
    known = whole["components"]["headers"]
    headers = [f"- `{name}`: {known[kind]['description']}" for name, kind in sorted(_headers(whole))]
    return page("HTTP", *parts, "## Headers of answers", "\n".join(headers))


def _headers(whole: dict[str, Any]) -> set[tuple[str, str]]:
    """Header -> its name among the components, of all answers."""
    operations = [operation for methods in whole["paths"].values() for operation in methods.values()]
    answers = [answer for operation in operations for answer in operation["responses"].values()]
    told = [(name, header) for answer in answers for name, header in answer.get("headers", {}).items()]
    return {(name, header["$ref"].rpartition("/")[2]) for name, header in told if "$ref" in header}


def _operation(operation: dict[str, Any]) -> Iterator[str]:
    yield f"{operation['summary']}. {operation.get('description', '')}"
    taken = [f"`{one['name']}` ({one['in']})" for one in operation.get("parameters", [])]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        taken += [f"`{member}`" for member in content["schema"]["properties"]]
    needs = "a key" if operation.get("security") else "no key"
    took = f"- Takes: {', '.join(taken)}\n" if taken else ""
    yield f"{took}- Needs: {needs}\n- Answers: {', '.join(operation['responses'])}"


OTHER_ADDRESSES = {
    **dict.fromkeys(PATHS[1:], f"`{PATHS[0]}`"),
    "/models": "`/v1/models`",
    "/v1/models/{id}": "one model as OpenAI's clients read it, without the `data` around it (`client.models.retrieve`)",
    "/models/{id}": "`/v1/models/{id}`",
    "/": "the [playground](../guides/playground.md), whose files and session are under `/web/`",
    "/openapi.json": "this page for generators of clients (OpenAPI 3.0)",
    "/docs": "the same for people",
}

PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "http.md": http_page,
    "settings.md": settings_page,
    "errors.md": errors_page,
    "parameters.md": parameters_page,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
