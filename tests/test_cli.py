"""The command `zturbo`, run for real on a tiny model of random weights that diffusers wrote."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import zturbo
from tests import reference
from zturbo import cli
from zturbo.cli import main
from zturbo.config import SETTINGS, load_config
from zturbo.engine import catalog
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.pictures import read_metadata
from zturbo.weights import hub

PROMPT = "A red fox, in the snow"
TRANSFORMER: dict[str, Any] = {
    "dim": 32, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "n_refiner_layers": 1, "axes_dims": [4, 6, 6],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest model that still has every part: half a second for a picture of 512x512."""
    small = reference.vae(block_out_channels=(8, 8, 8, 8), norm_num_groups=4)
    pipe = reference.pipeline(transformer=reference.transformer(**TRANSFORMER), vae=small)
    return reference.save(pipe, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the user's, no files but those that the test makes."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ZTURBO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def one_step(model: Path) -> list[str]:
    """Arguments of the quickest picture."""
    return ["generate", PROMPT, "--model", str(model), "--size", "square", "--steps", "1", "--dtype", "float32"]


@dataclass(frozen=True, slots=True)
class Told:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    def run_command(*arguments: str) -> Told:
        capfd.readouterr()
        code = main(arguments)
        said = capfd.readouterr()
        return Told(code, said.out, said.err)

    return run_command


def pixels(path: Path | str) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def files() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


# ---------------------------------------------------------------------------------------------------------- generate


def test_a_prompt_in_a_picture_out(run: Callable[..., Told], one_step: list[str], model: Path) -> None:
    told = run(*one_step, "--seed", "7")
    assert told.code == 0
    assert told.out == "a-red-fox-in-the-snow-7.png\n"
    assert "step 1 of 1" in told.err
    assert "seed 7" in told.err
    read = read_metadata(Path("a-red-fox-in-the-snow-7.png"))
    assert (read["width"], read["height"], read["ai_generated"]) == (512, 512, True)
    version = read["settings"].pop("model_version")
    assert version.startswith("tiny@")
    engine = Engine.load(str(model), LoadOptions(dtype="float32"))
    level = engine.levels["regular"]  # what draws depends on the processor
    assert read["settings"] == {
        "prompt": PROMPT, "seed": 7, "width": 512, "height": 512, "steps": 1, "acceleration": level.drawn,
        "model": "tiny", "software_version": zturbo.__version__,
    }  # fmt: skip

    again = run(*one_step, "--seed", "7", "--quiet", "--no-metadata")
    assert (again.out, again.err) == ("a-red-fox-in-the-snow-7-1.png\n", "")
    assert np.array_equal(pixels("a-red-fox-in-the-snow-7.png"), pixels("a-red-fox-in-the-snow-7-1.png"))
    bare = read_metadata(Path("a-red-fox-in-the-snow-7-1.png"))
    assert (bare["settings"], bare["parameters"], bare["ai_generated"]) == (None, None, True)
    assert PROMPT.encode() not in Path("a-red-fox-in-the-snow-7-1.png").read_bytes()


def test_several_pictures_and_json(run: Callable[..., Told], one_step: list[str]) -> None:
    told = run(*one_step, "--seed", "7", "-n", "2", "--output", "a.png", "--json", "--quiet")
    summary = json.loads(told.out)
    assert told.out.count("\n") == 1
    assert summary["images"] == [
        {"path": f"a-{i}.png", "seed": 6 + i, "flagged": False, "drawn_prompt": PROMPT} for i in (1, 2)
    ]
    assert (summary["prompt"], summary["width"], summary["height"]) == (PROMPT, 512, 512)
    assert (summary["steps"], summary["model"], summary["version"]) == (1, "tiny", zturbo.__version__)
    assert summary["model_version"].startswith("tiny@")
    assert {"load", "encode", "denoise", "decode", "total"} <= summary["timings"].keys()
    assert files() == ["a-1.png", "a-2.png"]
    assert not np.array_equal(pixels("a-1.png"), pixels("a-2.png"))

    run(*one_step, "--seed", "8", "--output", "b.png")
    assert np.array_equal(pixels("a-2.png"), pixels("b.png"))
    assert read_metadata(Path("a-2.png"))["settings"] == read_metadata(Path("b.png"))["settings"]


def test_a_picture_to_stdout_from_a_prompt_on_stdin(
    model: Path, one_step: list[str], monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffFüchse\r\n".encode())))
    code = main(["generate", "-", *one_step[2:], "--output", "-", "--format", "webp", "--seed", "1"])
    data = capfdbinary.readouterr().out
    assert code == 0
    assert read_metadata(data)["format"] == "webp"
    assert read_metadata(data)["settings"]["prompt"] == "Füchse"
    assert files() == []


def test_settings_from_the_environment_and_a_file(
    run: Callable[..., Told], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "my.toml").write_text(f'model = "{model}"\nacceleration = "none"\nmetadata = true\nthreads = 1\n')
    monkeypatch.setenv("ZTURBO_METADATA", "no")
    monkeypatch.setenv("ZTURBO_OUTPUT_DIR", "pictures")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    more = ["--config", "my.toml", "--format", "jpeg", "--json"]
    try:
        told = run("generate", "x", "--size", "square", "--steps", "1", "--seed", str(2**64 + 5), *more)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    summary = json.loads(told.out)
    (image,) = summary["images"]
    assert (image["path"], image["seed"]) == (f"pictures/x-{(2**64 + 5) % 2**63}.jpg", 2**64 + 5)
    assert summary["acceleration"] == "none"
    assert read_metadata(tmp_path / summary["images"][0]["path"])["settings"] is None


def test_a_lora_changes_the_picture_by_its_scale(run: Callable[..., Told], one_step: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    name = "diffusion_model.layers.0.attention.to_out.0"
    down, up = torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, "style:1.safetensors")
    for output, scale in (("full.png", ""), ("none.png", ":0")):
        told = run(*one_step, "--seed", "1", "--lora", f"style:1.safetensors{scale}", "-o", output)
        assert told.code == 0, told.err
    run(*one_step, "--seed", "1", "-o", "without.png")
    assert np.array_equal(pixels("none.png"), pixels("without.png"))
    assert not np.array_equal(pixels("full.png"), pixels("without.png"))


def test_a_server_takes_the_same_adapters_and_parts(
    run: Callable[..., Told], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, served = "diffusion_model.layers.0.attention.to_out.0", []
    save_file(
        {f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(32, 4)}, "a,b.safetensors"
    )
    monkeypatch.setattr("zturbo.api.serve.run", lambda config, _file: served.append(config))
    flags = ["--lora", "a,b.safetensors:0.5", "--lora", "a,b.safetensors", "--vae", str(model / "vae")]
    told = run("serve", "--model", str(model), *flags, "--text-encoder", str(model / "text_encoder"))
    assert told.code == 0, told.err
    for setting in SETTINGS:  # as a server hands them to its worker
        monkeypatch.setenv(setting.variable, str(getattr(served[0], setting.name)))
    engine = Engine.load_configured(load_config())
    assert re.fullmatch(r"tiny@\w+\+(\w+)\*0\.5\+\1\*1", engine.model.version)


def test_a_server_of_a_model_that_is_not_there_does_not_start(run: Callable[..., Told]) -> None:
    told = run("serve", "--model", "nowhere")
    assert told.code == 2, told.err
    assert "'nowhere' is neither a known model nor an existing folder or file" in told.err
    assert "zturbo serves" not in told.err


def test_nano_says_what_it_is(
    run: Callable[..., Told], one_step: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nano").symlink_to(model)
    monkeypatch.setattr(catalog, "EMBEDDED", tmp_path)
    told = run(*one_step[:2], "--size", "square", "--steps", "1", "--dtype", "float32")
    (line,) = [line for line in told.err.splitlines() if line.startswith("nano answers")]
    assert catalog.NANO.description in line
    assert "--model z-image-turbo" in line


def test_ctrl_c_stops_within_a_step_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zturbo", "generate", PROMPT, "--model", str(model), "--size", "2048x2048"]
    slow = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "no-kernels")}  # or it is done before the signal comes

    def hear() -> None:
        """Of what a shell runs in the background, and of its children, SIGINT is ignored."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=slow, preexec_fn=hear
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if line.startswith("denoise: step 1 of 8"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == ""
    assert rest.splitlines()[-1] == "zturbo: stopped; nothing was left half written"
    assert "Traceback" not in rest
    assert rest.count("step ") <= 1
    assert files() == []


@pytest.mark.parametrize("output", [[], ["--output", "a.png"]])
def test_a_write_that_fails_leaves_nothing(run: Callable[..., Told], one_step: list[str], output: list[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        told = run(*one_step, *output, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.code == 1
    assert "cannot write" in told.err
    assert "File too large" in told.err
    assert files() == []


# --------------------------------------------------------------------------------------------------------- bad input

BAD_INPUT = [
    (["--size", "1000x1000"], ["--size", "1000x1000", "nearest valid value: 992x992"]),
    (["--size", "huge"], ["--size", "'huge'", "landscape_4_3"]),
    (["--steps", "9"], ["--steps: must be an integer from 1 to 8; got 9 (nearest valid value: 8)"]),
    (["--steps", "two"], ["--steps", "'two'"]),
    (["--steps", "2.5"], ["--steps", "2.5"]),
    (["--seed", "0"], ["--seed", "got 0", "nearest valid value: 1"]),
    (["--seed", "-1"], ["--seed", "got -1"]),
    (["--seed", "9" * 5000], ["--seed", "5000 characters"]),
    (["-n", "5"], ["--num-images", "nearest valid value: 4"]),
    (["--format", "jpg"], ["--format", "png, jpeg, webp", "nearest valid value: jpeg"]),
    (["--acceleration", "fast"], ["--acceleration", "none, regular, high"]),
    (["--dtype", "fp16"], ["--dtype", "float16"]),
    (["--device", "gpu"], ["--device", "cuda"]),
    (["--quantization", "int4"], ["--quantization", "nearest valid value: int8"]),
    (["--output", "a.bmp"], ["--output", ".png, .jpg, .jpeg, .webp", "a.bmp"]),
    (["--output", "a.png", "--format", "webp"], ["--output", "contradicts --format webp"]),
    (["--output", f"{'a' * 300}.png"], ["--output", "too long for a file", "choose a shorter one"]),
    (["--output", "none/a.png"], ["--output", "'none' is no folder", "make it first"]),
    (["--output", "folder.png"], ["--output", "is a folder", "folder.png/picture.png"]),
    (["--output", "-", "-n", "2"], ["--output", "one picture"]),
    (["--output", "-", "--json"], ["--output", "--json"]),
    (["--lora", "a.safetensors:nan"], ["--lora", "finite"]),
    (["--lora", ":1"], ["--lora", "FILE:SCALE"]),
    (["--nonsense"], ["No such option: --nonsense", "zturbo generate --help"]),
    (["two", "prompts"], ["zturbo generate --help"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT, ids=[" ".join(row[0])[:30] for row in BAD_INPUT])
def test_bad_input_is_told_before_anything_is_loaded(
    run: Callable[..., Told], arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("the engine was loaded")

    monkeypatch.setattr(cli, "_load", must_not_run)
    Path("folder.png").mkdir()
    told = run("generate", PROMPT, *arguments)
    assert told.code == 2
    assert told.out == ""
    for word in words:
        assert word in told.err
    assert "Traceback" not in told.err
    assert files() == ["folder.png"]


def test_all_problems_are_told_at_once(run: Callable[..., Told]) -> None:
    told = run(
        "generate", "x" * 4001, "--size", "1x1", "--dtype", "x", "-o", "a.tif", "--steps", "0", "--lora", "a:inf"
    )
    assert told.code == 2
    starts = [line.split(":")[1].strip() for line in told.err.splitlines()]
    assert starts == ["--lora", "--dtype", "--output", "PROMPT", "--size", "--steps"]


def test_prompts_that_are_no_text(run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "U+DCFF at position 1" in run("generate", "a\udcff").err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb")))
    told = run("generate", "-")
    assert told.code == 2
    assert "byte 1 is 0xff" in told.err


@pytest.mark.parametrize("feature", ["--prompt-expansion"])
def test_a_feature_that_is_missing_is_refused_only_when_asked_for(
    run: Callable[..., Told], one_step: list[str], feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zturbo.engine.engine.Engine.features", frozenset())
    told = run(*one_step, feature, "--quiet")
    assert (told.code, files()) == (2, [])
    assert told.err.startswith(f"zturbo: {feature}: is not available in this version")


def test_what_is_not_there_exits_with_2_and_a_hint(run: Callable[..., Told], tmp_path: Path) -> None:
    told = run("generate", PROMPT, "--model", "no-such-model", "--quiet")
    assert told.code == 2
    assert "'no-such-model'" in told.err
    assert "hint: known models: nano, z-image-turbo" in told.err
    (tmp_path / "wrong.toml").write_text("colour = 1")
    told = run("generate", PROMPT, "--config", "wrong.toml")
    assert told.code == 2
    assert "wrong.toml: no setting is called 'colour'" in told.err


def test_a_mistake_of_ours_is_one_line_without_traceback(
    run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("broken")

    monkeypatch.setattr(cli, "_load", fail)
    told = run("generate", PROMPT)
    assert told.code == 1
    assert told.err == "zturbo: internal error, TypeError: broken\n  hint: ZTURBO_DEBUG=1 shows where\n"
    monkeypatch.setenv("ZTURBO_DEBUG", "1")
    with pytest.raises(TypeError, match="broken"):
        run("generate", PROMPT)


@given(st.integers(-(10**30), 10**30))
def test_numbers_are_read_as_spelled(number: int) -> None:
    assert cli._number(str(number)) == number
    assert cli._number(f"{number}.5") == float(f"{number}.5")


@given(st.text(max_size=20))
def test_other_texts_stay_texts(text: str) -> None:
    read = cli._number(text)
    assert read == text or text.lstrip("+-").replace(".", "", 1).isdigit()


# ------------------------------------------------------------------------------------------------- the other commands


def test_models_are_listed_with_where_they_are(run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "local_path", lambda model: Path("/x") if model is catalog.NANO else None)
    lines = run("models", "list").out.splitlines()
    assert [line.split()[:2] for line in lines] == [["nano", "here"], ["z-image-turbo", "not"]]
    rows = json.loads(run("models", "list", "--json").out)
    assert [(row["name"], row["path"]) for row in rows] == [("nano", "/x"), ("z-image-turbo", None)]


def test_the_path_of_a_model(run: Callable[..., Told], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "local_path", lambda _model: None)
    assert run("models", "path", str(model)).out == f"{model}\n"
    told = run("models", "path", "z-image-turbo")
    assert (told.code, told.out) == (2, "")
    assert "zturbo models pull z-image-turbo" in told.err


def snapshot(cache: Path) -> Path:
    """Where a download at the pinned commit leaves the published model; no branch of the repository points there."""
    pinned = hub.model_named("Tongyi-MAI/Z-Image-Turbo")
    return cache / f"models--{pinned.repository.replace('/', '--')}" / "snapshots" / pinned.revision


def with_cache(cache: Path, *arguments: str) -> Told:
    done = subprocess.run(
        [sys.executable, "-m", "zturbo", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_CACHE": str(cache)},
    )  # fmt: skip
    return Told(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["z-image-turbo", "Tongyi-MAI/Z-Image-Turbo"])
def test_a_pulled_model_is_found_by_its_name(model: Path, tmp_path: Path, name: str) -> None:
    folder = snapshot(tmp_path)
    shutil.copytree(model, folder)
    told = with_cache(tmp_path, "models", "path", name)
    assert (told.code, told.out) == (0, f"{folder}\n"), told.err


def test_a_model_of_which_another_program_fetched_single_files_is_not_here(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    rows = json.loads(with_cache(tmp_path, "models", "list", "--json").out)
    assert {row["name"]: row["path"] for row in rows}["z-image-turbo"] is None
    told = with_cache(tmp_path, "generate", PROMPT, "--model", "z-image-turbo")
    assert (told.code, told.out) == (2, "")
    assert "zturbo models pull z-image-turbo" in told.err


def test_another_model_of_the_hub_is_found_once_it_was_pulled(
    run: Callable[..., Told], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zturbo.weights.hub.find", lambda name: model if name == "somebody/else@v2" else None)
    assert run("models", "path", "somebody/else@v2").out == f"{model}\n"
    told = run("models", "path", "somebody/else")
    assert told.code == 2
    assert "zturbo models pull OWNER/NAME" in told.err


def test_pulling_without_a_connection_says_what_to_do(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody listens
    done = subprocess.run(
        [sys.executable, "-m", "zturbo", "models", "pull", "z-image-turbo"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot download Tongyi-MAI/Z-Image-Turbo" in done.stderr
    assert "pass --model FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_is_described(run: Callable[..., Told], model: Path) -> None:
    facts = json.loads(run("models", "show", str(model), "--json").out)
    assert (facts["name"], facts["path"], facts["transformer"]["dim"]) == ("tiny", str(model), 32)
    lines = run("models", "show", str(model)).out.splitlines()
    assert f"version       {facts['version']}" in lines
    assert any(line.startswith("transformer") and "dim=32" in line for line in lines)


def test_pulling(run: Callable[..., Told], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano").symlink_to(model)
    monkeypatch.setattr(catalog, "EMBEDDED", tmp_path)
    asked: list[str] = []

    def pull(name: str, *, on_verified: Callable[[str], None]) -> Path:
        asked.append(name)
        on_verified("vae/x.safetensors")
        return Path("/cache/x")

    monkeypatch.setattr("zturbo.weights.hub.pull", pull)
    told = run("models", "pull", "alibaba/z-image-turbo")
    assert (told.code, told.out, told.err) == (0, "/cache/x\n", "verified vae/x.safetensors\n")
    run("models", "pull", "somebody/else")
    assert asked == ["Tongyi-MAI/Z-Image-Turbo", "somebody/else"]
    told = run("models", "pull", "nano")
    assert (told.code, told.out) == (0, f"{tmp_path / 'nano'}\n")
    assert "nothing to download" in told.err
    assert len(asked) == 2


def test_the_doctor_examines_one_model(run: Callable[..., Told], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTURBO_DTYPE", "float32")
    monkeypatch.setenv("ZTURBO_DEVICE", "cpu")
    report = json.loads(run("doctor", "--model", str(model), "--json").out)
    assert (report["versions"]["torch"], report["machine"]["device"]) == (torch.__version__, "cpu")
    ((plan, ready),) = [(one["plan"], one["advice"]) for one in report["models"]]
    assert (plan["dtype"], ready) == ("float32", "ready")
    told = run("doctor", "--model", str(model))
    assert str(model) in told.out
    assert "float32" in told.out
    assert told.err == ""


def test_the_doctor_knows_the_published_model_without_its_files(
    run: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zturbo.engine.doctor.local_path", lambda _model: None)
    told = run("doctor", "--model", "z-image-turbo")
    assert told.code == 0
    assert "z-image-turbo" in told.out


def test_the_doctor_refuses_a_model_that_is_not_there_or_is_damaged(
    run: Callable[..., Told], model: Path, tmp_path: Path
) -> None:
    for name in ("/nope", "~nobody-of-that-name/model", "m" * 5000):
        told = run("doctor", "--model", name)
        assert (told.code, told.out) == (2, "")
        assert f"{name!r} is neither a known model nor an existing folder or file" in told.err
    damaged = shutil.copytree(model, tmp_path / "damaged")
    (damaged / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    told = run("doctor", "--model", str(damaged), "--json")
    assert (told.code, told.out) == (1, "")
    assert str(damaged) in told.err
    (damaged / "vae" / "config.json").write_text("{")
    told = run("doctor", "--model", str(damaged))
    assert (told.code, told.out) == (2, "")
    assert "config.json" in told.err


def test_the_doctor_tells_a_damaged_model_among_all_known_ones(
    run: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "EMBEDDED", tmp_path)
    monkeypatch.setattr("zturbo.engine.doctor.local_path", lambda _model: None)
    told = run("doctor", "--json")
    assert told.code == 0
    nano, turbo = json.loads(told.out)["models"]
    assert (nano["plan"], "install zturbo again" in nano["advice"]) == (None, True)
    assert turbo["model"] == "z-image-turbo"


def test_the_doctor_says_what_a_single_file_needs(
    run: Callable[..., Told], model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("zturbo.engine.engine.local_path", lambda _model: None)
    file = tmp_path / "alone.safetensors"
    save_file(reference.transformer(dim=256, axes_dims=[32, 48, 48]).state_dict(), file)
    told = run("doctor", "--model", str(file))
    assert told.code == 0
    assert "zturbo models pull z-image-turbo" in told.out
    for name in ("text_encoder", "vae"):  # what `serve` would take
        monkeypatch.setenv(f"ZTURBO_{name.upper()}", str(model / name))
    told = run("doctor", "--model", str(file))
    assert re.search("next +ready", told.out)


# ------------------------------------------------------------------------------------------------ help, and the start

COMMANDS = [
    ["--help"], ["generate", "--help"], ["doctor", "--help"], ["models", "--help"], ["models", "list", "--help"],
    ["models", "path", "--help"], ["models", "pull", "--help"], ["models", "show", "--help"], ["--version"],
    [], ["models"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_help_is_instant(arguments: list[str]) -> None:
    """By what it imports: how long that takes is the machine's affair."""
    heavy = ("torch", "numpy", "PIL", "rich", "pydantic", "huggingface_hub", "safetensors")
    code = (
        "import sys; from zturbo.cli import main; code = main(sys.argv[1:]); "
        f"print(*[name for name in {heavy} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "\n"
    assert done.stdout.startswith("zturbo 0" if arguments == ["--version"] else "Usage: zturbo")


def test_the_version_is_all_that_is_told(run: Callable[..., Told]) -> None:
    assert run("--version", "models", "list").out == f"zturbo {zturbo.__version__}\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "zturbo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"zturbo {zturbo.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "zturbo", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command 'nonsense'" in done.stderr


# ----------------------------------------------------------------------------------------------------------- progress


@dataclass(frozen=True, slots=True)
class Moment:
    """What the meter reads of the engine's progress."""

    stage: str
    image: int
    images: int
    step: int
    steps: int


def moments() -> Iterator[Moment]:
    """Two pictures of two steps."""
    yield Moment("encode", 0, 2, 0, 2)
    for image in (0, 1):
        yield from (Moment("denoise", image, 2, step, 2) for step in (0, 1, 2))
        yield Moment("decode", image, 2, 2, 2)
    yield Moment("done", 1, 2, 2, 2)


def test_a_line_a_step_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with cli._meter(False, 4) as show:
        for moment in moments():
            show(moment)  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.partition(", about")[0] for line in said.err.splitlines()] == [
        "encode", "denoise 1 of 2: step 1 of 2", "denoise 1 of 2: step 2 of 2", "decode 1 of 2",
        "denoise 2 of 2: step 1 of 2", "denoise 2 of 2: step 2 of 2", "decode 2 of 2",
    ]  # fmt: skip


def test_the_time_left_is_told_from_the_steps_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0, 120.0, 130.0, 140.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    show = cli._lines(4)
    for moment in moments():
        show(moment)  # type: ignore[arg-type]
    told = [line.rpartition("about ")[2] for line in capsys.readouterr().err.splitlines() if "about" in line]
    assert told == ["30 s left", "20 s left", "10 s left", "0 s left"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with cli._meter(False, 4) as show:
        for moment in moments():
            show(moment)  # type: ignore[arg-type]
    drawn = terminal.getvalue()
    assert "4/4" in drawn
    assert "steps, left" in drawn


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with cli._meter(True, 4) as show:
        for moment in moments():
            show(moment)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
