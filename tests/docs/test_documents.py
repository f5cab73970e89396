"""The documents say what the code does: reference pages are the code's, and marked blocks run."""

import os
from pathlib import Path
from typing import Any

import pytest
import typer.main

from docs import generate
from tests.docs.blocks import Block, run_console, run_document, runnable_blocks
from zturbo import errors
from zturbo.cli import app
from zturbo.config import SETTINGS
from zturbo.params import MEMBERS, SIZES

ROOT = Path(__file__).parent.parent.parent
REFERENCE = ROOT / "docs" / "reference"
MARKED = {"README.md": 2, "backup.md": 2, "keys-and-usage.md": 4}
"""How many of a document's blocks are run; the others need a server, a model or another program."""
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]


def headings(page: str, level: str) -> list[str]:
    lines = (REFERENCE / page).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix(f"{level} ") for line in lines if line.startswith(f"{level} ")]


def sections(page: str) -> dict[str, str]:
    """Heading of the second level -> what stands under it."""
    parts = (REFERENCE / page).read_text(encoding="utf-8").split("\n## ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def commands(command: Any, path: str = "zturbo") -> dict[str, Any]:
    found = {path: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= commands(child, f"{path} {name}")
    return found


COMMANDS = commands(typer.main.get_command(app))


def test_the_reference_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_stale_reference_is_found(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reference"
    monkeypatch.setattr(generate, "FOLDER", folder)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    page = folder / ("stranger.md" if damage == "add" else "cli.md")
    if damage == "remove":
        page.unlink()
    else:
        page.write_text("something else\n", encoding="utf-8")
    assert generate.main(["--check"]) == 1
    told = capsys.readouterr().out
    assert page.name in told
    assert damage == "add" or "+# The command line" in told


def test_every_command_has_its_heading() -> None:
    assert headings("cli.md", "##") == sorted(COMMANDS)


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_option_and_argument_has_its_heading_and_help(path: str) -> None:
    section = sections("cli.md")[path]
    for param in COMMANDS[path].params:
        names = param.opts if param.param_type_name == "option" else [param.metavar]
        for name in (*names, *getattr(param, "secondary_opts", ())):
            assert any(line.startswith("### ") and f"`{name}`" in line for line in section.splitlines()), name
        assert param.help, f"{path} {param.name} has no help"
        assert param.help in section


def test_every_setting_has_its_heading() -> None:
    found = sections("settings.md")
    assert list(found) == [f"`{setting.name}`" for setting in SETTINGS]
    for setting in SETTINGS:
        assert setting.variable in found[f"`{setting.name}`"]
        assert setting.allowed in found[f"`{setting.name}`"]


def test_every_error_has_its_heading() -> None:
    classes = {
        name: thing
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, errors.ZTurboError)
    }
    found = sections("errors.md")
    assert found.keys() == classes.keys()
    for name, error in classes.items():
        assert f"`{error.code}`" in found[name]
        assert f"status {error.status}," in found[name]


def test_every_parameter_has_its_heading() -> None:
    assert headings("parameters.md", "##") == [*(f"`{member.name}`" for member in MEMBERS), "HTTP only", "Sizes"]
    for name, (width, height) in SIZES.items():
        assert f"| `{name}` | {width} | {height} |" in sections("parameters.md")["Sizes"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_marked_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ZTURBO_")]:  # the reader's own
        monkeypatch.delenv(name)
    (tmp_path / "config.toml").touch()
    monkeypatch.setenv("ZTURBO_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ZTURBO_DATA_DIR", str(tmp_path / "data"))
    found = run_document(document.read_text(encoding="utf-8"), tmp_path)
    assert found == MARKED.get(document.name, 0)


def test_only_marked_blocks_are_found() -> None:
    text = "```python\na\n```\n\n<!-- run -->\n```python\nb\n```\n\n<!-- run -->\n```console\n$ c\n```\n"
    assert runnable_blocks(text) == [Block("python", "b\n", 6), Block("console", "$ c\n", 11)]


@pytest.mark.parametrize("text", ["<!-- run -->\n", "<!-- run -->\n\n```python\n```\n", "<!-- run -->\n```json\n```\n"])
def test_a_mark_in_the_wrong_place_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="right above"):
        runnable_blocks(text)


def test_python_blocks_share_names_and_a_folder(tmp_path: Path) -> None:
    blocks = ["from pathlib import Path", "Path('a').write_text('2')"]
    assert run_document("".join(f"<!-- run -->\n```python\n{text}\n```\n" for text in blocks), tmp_path) == 2
    assert (tmp_path / "a").read_text() == "2"
    with pytest.raises(AssertionError):
        run_document("<!-- run -->\n```python\nassert 1 == 2\n```\n", tmp_path)


def test_console_blocks_must_succeed_and_show_what_they_say(tmp_path: Path) -> None:
    run_console(Block("console", "$ echo one; echo two 22\none\ntwo ...\n$ true\n", 1), tmp_path)
    for text in ("$ false\n", "$ echo one\ntwo\n", "$ printf 'a b'\nb ... a\n"):
        with pytest.raises(AssertionError, match="line 7"):
            run_console(Block("console", text, 7), tmp_path)
