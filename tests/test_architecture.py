"""The rules that keep the tree true, read from the source itself: who may import what, and how files may be named.

An import that a function makes when it is called counts like any other, unless a rule says "on import".
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "zturbo"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LIGHT = ("service.py", "keys.py", "quantities.py", "reports.py", "pricing.py", "engine/queue.py", "engine/fairness.py",
         "engine/worker.py",
         "engine/progress.py", "storage/*.py", "expansion/*.py",
         "api/sessions.py", "api/web.py",
         "safety/checker.py", "safety/load.py", "safety/open_nsfw.py", "safety/prompts.py")  # fmt: skip
TORCH_FREE = ("params.py", "errors.py", "config.py", *LIGHT)
LIGHT_ON_IMPORT = ("cli.py", "cli_records.py", "cli_options.py", "config.py", "errors.py", "params.py", "pictures.py",
                   "safety/*.py", "expansion/*.py",
                   "__init__.py", "__main__.py")  # fmt: skip
HEAVY = {"torch", "numpy", "PIL", "rich", "pydantic", "transformers", "diffusers", "huggingface_hub", "safetensors",
         "onnxruntime", "openai"}  # fmt: skip
VAGUE = {"util", "utils", "helper", "helpers", "common", "base", "core", "misc", "manager"}
WEB = {"fastapi", "starlette"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def files(*patterns: str) -> list[Path]:
    return [path for path in SOURCES if any(path.relative_to(PACKAGE).match(pattern) for pattern in patterns)]


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that one statement imports; relative ones are spelled out."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        home = package.split(".")[: -(node.level - 1) or None] if node.level else []
        origin = ".".join([*home, *filter(None, [node.module])])
        yield from (f"{origin}.{alias.name}" for alias in node.names)


def imports(path: Path, *, on_import_only: bool = False) -> set[str]:
    """Everything a file imports; `if TYPE_CHECKING:` blocks do not count."""
    package = ".".join(["zturbo", *path.relative_to(PACKAGE).parts[:-1]])
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        found.update(imported(node, package))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif not (on_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("zturbo.")}


def test_there_is_something_to_judge() -> None:
    assert {"params.py", "errors.py", "config.py", "cli.py", "models/transformer.py"} <= {
        name_of(one) for one in SOURCES
    }


def test_imports_are_found_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models" / "probe.py"
    path.parent.mkdir()
    path.write_text(
        "import a.b\nfrom c import d\nfrom .e import f\nfrom ..g import h\nif TYPE_CHECKING:\n    import i\n"
        "def j():\n    import k\ntry:\n    import l\nexcept ImportError:\n    pass\n"
    )
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path)
    at_once = {"a.b", "c.d", "zturbo.models.e.f", "zturbo.g.h", "l"}
    assert imports(path) == at_once | {"k"}
    assert imports(path, on_import_only=True) == at_once


@pytest.mark.parametrize("path", files(*TORCH_FREE), ids=name_of)
def test_no_torch_here(path: Path) -> None:
    assert "torch" not in roots(imports(path))


@pytest.mark.parametrize("path", files(*TORCH_FREE), ids=name_of)
def test_nor_by_way_of_others(path: Path) -> None:
    """Whatever of ours such a file imports is free of torch as well, or is imported only when needed."""
    for name in ours(imports(path, on_import_only=True)):
        other = ROOT.joinpath(*name.split(".")[:-1]).with_suffix(".py")
        assert not other.is_file() or "torch" not in roots(imports(other, on_import_only=True)), name


@pytest.mark.parametrize("path", files(*LIGHT_ON_IMPORT), ids=name_of)
def test_help_stays_instant(path: Path) -> None:
    assert not roots(imports(path, on_import_only=True)) & HEAVY


@pytest.mark.parametrize("path", files("models/*.py"), ids=name_of)
def test_models_import_only_each_other_and_errors(path: Path) -> None:
    assert {name for name in ours(imports(path)) if name.split(".")[1] not in ("models", "errors")} == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_imports_the_nano_recipe(path: Path) -> None:
    assert "nano" not in roots(imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_reference_libraries_are_for_tests(path: Path) -> None:
    """They take seconds to import; the networks are our own. One file runs checkers of others, by an extra."""
    allowed = {"transformers"} if name_of(path) == "safety/classifier.py" else set()
    assert not roots(imports(path)) & ({"transformers", "diffusers"} - allowed)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_web_framework_stays_in_the_api(path: Path) -> None:
    assert name_of(path).startswith("api/") or not roots(imports(path)) & WEB


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_ray_stays_in_scale(path: Path) -> None:
    assert name_of(path).startswith("scale/") or "ray" not in roots(imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_say_what_is_inside(path: Path) -> None:
    assert not {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} & VAGUE


def test_no_wildcard_imports() -> None:
    assert [name_of(path) for path in SOURCES if any(name.endswith(".*") for name in imports(path))] == []
