"""The benchmarks run: the code that a GPU machine will execute, at a small size on the CPU."""

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from http.client import RemoteDisconnected
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import blocks, distance, engine, full_size, gpu, quality, report, turns, waterfall
from bench.random_engine import engine_of
from nano.config import PROFILES
from nano.evaluate import plain_prompt, unseen
from nano.judge import Judge
from zturbo.acceleration.levels import Levels, Pass
from zturbo.engine.engine import Engine
from zturbo.engine.machine import detect
from zturbo.engine.pipeline import Pipeline
from zturbo.params import ACCELERATIONS

SMALL = (128, 128)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def gpu_part(part: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of one part, run as on a GPU machine, with tiny shapes and interpreted kernels."""
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--small", "--part", part])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gpu.main()
    result = json.loads((folder / f"gpu-{part}-small.json").read_text())
    assert result["conditions"]["torch"] == torch.__version__
    assert "matrix rate" in result["note"]
    return list(result["rows"])


def test_gpu_denoise(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu_part("denoise", results, monkeypatch)
    assert [(row["level"], row["drawn as"]) for row in rows] == [(level, level) for level in ACCELERATIONS]
    assert [row["passes"] for row in rows] == [
        "fused kernels, CUDA graphs", "int8 products, fused kernels, CUDA graphs",
        "fp8 products, fused kernels, CUDA graphs",
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in rows)


def test_gpu_products(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu_part("products", results, monkeypatch)
    assert [row["product"] for row in rows] == ["128 to 384", "128 to 128", "128 to 682", "341 to 128"]
    assert all(row["int8, gain"] > 0 and row["fp8, TFLOP/s"] > 0 for row in rows)


def test_gpu_waterfall(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu_part("waterfall", results, monkeypatch)
    distances = {row["pass"].partition(":")[0]: row["distance of a forward"] for row in rows}
    assert list(distances) == ["eager, FlashAttention 2 through PyTorch", "attention", "fused kernels", "CUDA graphs",
                               "int8 products", "fp8 products"]  # fmt: skip
    assert all(distances[row["pass"].partition(":")[0]] < 5e-3 for row in rows if row["lossless"] == "yes")
    assert 1e-3 < distances["int8 products"] < distances["fp8 products"] < 0.05


def test_each_rungs_memory_is_free_before_the_next_is_made(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.nn.Module]] = []
    fork = Pipeline.fork

    def counted(pipeline: Pipeline, level: str) -> Pipeline:
        assert [one for one in made if one() is not None] == []
        forked = fork(pipeline, level)
        made.append(weakref.ref(forked.transformer))  # which a recorded forward holds in a cycle
        return forked

    monkeypatch.setattr(gpu, "_forward", lambda *_: torch.ones(1))
    monkeypatch.setattr(gpu, "denoising", lambda *_: 1.0)
    gc.disable()
    try:
        monkeypatch.setattr(Pipeline, "fork", counted)
        gpu_part("waterfall", results, monkeypatch)
    finally:
        gc.enable()
    assert len(made) == 6


def test_gpu_companions_and_pictures(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["what"] for row in gpu_part("companions", results, monkeypatch)] == ["text encoder", "vae decoder"]
    rows = gpu_part("pictures", results, monkeypatch)
    assert [row["level"] for row in rows] == ["none", "high"]
    assert all(row["seconds"] >= row["denoise"] > 0 for row in rows)


def test_gpu_expansion(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WRITTEN_TOKENS", 9)
    rows = gpu_part("expansion", results, monkeypatch)
    assert [(row["what"], row["graphs"]) for row in rows] == [
        ("growing cache", 0), ("fixed cache, launch by launch", 0), ("fixed cache, CUDA graph", 1)]  # fmt: skip
    assert all(row["tokens"] == 9 and row["seconds"] > 0 for row in rows)


def test_gpu_over_http(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = gpu_part("http", results, monkeypatch)
    assert 0 < row["seconds p50"] <= row["seconds p95"]
    assert row["pictures a second, 4 at once"] > 0
    assert row["requests"] > 0


@pytest.mark.filterwarnings("ignore")  # the compiler's own, about a model that is not ours
def test_gpu_diffusers(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu_part("diffusers", results, monkeypatch)
    assert [row["what"] for row in rows] == ["diffusers, eager", "diffusers, blocks compiled"]


def test_a_part_that_fails_keeps_its_rows_and_fails_the_benchmark(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_bench: gpu.Bench) -> Iterator[dict[str, Any]]:
        yield {"what": "measured before"}
        kept = json.loads((results / "gpu-denoise-small.json").read_text())
        assert kept["rows"] == [{"what": "measured before"}], "a crash would leave nothing"
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.ROWS, "denoise", broken)
    with pytest.raises(SystemExit):
        gpu_part("denoise", results, monkeypatch)
    result = json.loads((results / "gpu-denoise-small.json").read_text())
    assert result["rows"] == [{"what": "measured before"}]
    assert "out of memory" in result["note"]


def test_a_part_that_crashes_leaves_the_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def crashing(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        started.append(command[command.index("--part") :])
        return subprocess.CompletedProcess(command, -11 if "denoise" in command else 0)

    monkeypatch.setattr(subprocess, "run", crashing)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--small"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert started == [["--part", part, "--device", "cpu", "--small"] for part in gpu.PARTS]


def test_parity_that_hangs_tells_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hanging(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout, output=b"far before" + b"." * 4000 + b"test_of_graphs")

    monkeypatch.setattr(subprocess, "run", hanging)
    assert gpu.parity() == ("not done after 400 s", False)
    printed = capsys.readouterr().out
    assert "test_of_graphs" in printed
    assert "far before" not in printed


def test_parity_that_dies_without_a_word_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -11, b""))
    assert gpu.parity() == ("ended with -11", False)


def test_a_failed_parity_test_fails_the_benchmark(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "parity", lambda: ("1 failed, 3 passed", False))
    with pytest.raises(SystemExit):
        gpu_part("parity", results, monkeypatch)


def test_a_part_without_its_packages_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.NEEDS, "http", ("no_such_library",))
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--small", "--part", "http"])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    assert "http: not run, no_such_library not installed" in capsys.readouterr().out


def test_only_the_server_asks_for_the_servers_packages() -> None:
    """Machines with a GPU often have PyTorch and no network."""
    program = """if True:
        import builtins, sys
        from bench.gpu import NEEDED_BY_SERVER
        sys.modules.update(dict.fromkeys(NEEDED_BY_SERVER))
        import bench.random_engine
        for name in NEEDED_BY_SERVER:
            del sys.modules[name]
        others, asked, plain = {name.partition(".")[0] for name in sys.modules}, set(), builtins.__import__
        def noting(name, scope=None, *rest):
            if scope and scope["__name__"].startswith(("bench", "tests", "zturbo")) and not any(rest[2:]):
                asked.add(name.partition(".")[0])
            return plain(name, scope, *rest)
        builtins.__import__ = noting
        import bench.server, tests.api.server_process, zturbo.api.serve
        print(sorted(asked - others - sys.stdlib_module_names - {"tests"} - set(NEEDED_BY_SERVER)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def server_that_answers(*replies: SimpleNamespace | Exception) -> SimpleNamespace:
    """Stands in for a server that starts: what its /readyz answers, one after the other."""
    answers = iter(replies)

    def ask(_method: str, _path: str) -> SimpleNamespace:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(ask=ask, process=SimpleNamespace(poll=lambda: None))


def test_a_server_without_its_model_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    loading = SimpleNamespace(status=503, body=b'{"error": {"message": "the model is being loaded"}}')
    broken = SimpleNamespace(status=503, body=b'{"error": {"message": "the model could not be loaded: no kernel"}}')
    gpu._wait_until_ready(
        server_that_answers(RemoteDisconnected("not yet"), loading, SimpleNamespace(status=200, body=b"{}"))
    )
    with pytest.raises(AssertionError, match="could not be loaded: no kernel"):
        gpu._wait_until_ready(server_that_answers(loading, broken))


@pytest.mark.parametrize(
    ("selection", "passed"),
    [
        ("tests/bench/test_bench.py::test_turns_are_taken", True),
        ("tests/bench/test_bench.py::test_no_such_test", False),
        ("tests/no_such_folder", False),
    ],
)
def test_parity_counts_only_tests_that_ran_and_passed(selection: str, passed: bool) -> None:
    assert gpu.parity(selection)[1] is passed


def test_parity_without_its_libraries_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED_BY_TESTS", ("no_such_library",))
    line, passed = gpu.parity()
    assert not passed
    assert "no_such_library" in line


@pytest.mark.parametrize("scheme", full_size.SCHEMES)
def test_full_size_benchmark_at_a_small_size(scheme: str) -> None:
    row = full_size.run(scheme, 128, 128, rounds=1, small=True)
    assert row["seconds a forward"] > 0
    assert row["peak GiB"] > 0


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 512), 13.69), ((1024, 768), 41.25), ((1024, 1024), 56.58), ((2048, 2048), 320.9)]
)
def test_flop_of_the_published_model(size: tuple[int, int], expected: float) -> None:
    """Against figures computed by hand, which count the caption's refiners (0.09 TFLOP) as well."""
    assert full_size.flop(full_size.config(small=False), *size) / 1e12 == pytest.approx(expected - 0.09, rel=2e-3)


@pytest.fixture(scope="module")
def drawing(tiny_folder: Path) -> Engine:
    return engine.load(str(tiny_folder), "float32")


@pytest.fixture
def changing(drawing: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The same pipeline with levels of its own: one pass changes nothing, the other one the picture."""

    def half(pipeline: Pipeline) -> None:
        final = pipeline.vae.decoder.conv_out
        final.weight = torch.nn.Parameter(final.weight * 0.9, requires_grad=False)

    same = Pass("same", True, lambda _pipeline: None, lambda _pipeline: None)
    other = Pass("other", False, lambda _pipeline: None, half)
    table = {"none": (same,), "regular": (same, other), "high": (same, other)}
    monkeypatch.setattr(waterfall, "LEVELS", table)
    made = Levels(drawing.pipeline, table=table)
    return Engine(drawing.pipeline, drawing.model, drawing.machine, drawing.plan, made)


def test_every_level_beside_diffusers(
    drawing: Engine, tiny_folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STEPS", 1)
    rows = engine.compare(drawing, engine.Diffusers(tiny_folder, "float32"), SMALL, rounds=1)
    assert [row["who"] for row in rows] == ["diffusers", *ACCELERATIONS]
    ours = {row["who"]: row for row in rows}
    assert ours["none"]["PSNR to diffusers"] == "equal" or ours["none"]["PSNR to diffusers"] > 55
    assert ours["none"]["PSNR to none"] == "equal"
    assert ours["diffusers"]["times as fast as diffusers"] == 1
    for name in ACCELERATIONS:
        assert ours[name]["drawn as"] == drawing.levels[name].drawn
        expected = ours["diffusers"]["seconds"] / ours[name]["seconds"]
        assert ours[name]["times as fast as diffusers"] == pytest.approx(expected)


def test_a_level_that_draws_as_a_lower_one_is_shown_and_not_drawn_again(
    changing: Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STEPS", 1)
    _, none, regular, high = engine.compare(changing, engine.Diffusers(tiny_folder, "float32"), SMALL, rounds=1)
    assert (none["drawn as"], regular["drawn as"], high["drawn as"]) == ("none", "regular", "regular")
    assert regular["seconds"] == high["seconds"]
    assert none["PSNR to none"] == "equal"
    assert 5 < regular["PSNR to none"] < 60


def test_the_waterfall_climbs_every_pass_once(changing: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DISTANCE_SEEDS", (1,))
    rows = engine.waterfall(changing, SMALL, rounds=1)
    assert [(row["pass"], row["level"], row["lossless"]) for row in rows] == [
        ("eager", "none", "yes"), ("+ same", "none", "yes"), ("+ other", "regular", "no")]  # fmt: skip
    assert [row["added MiB"] > 0 for row in rows] == [False, False, True]
    assert [row["least PSNR to none"] == "equal" for row in rows] == [True, True, False]
    assert rows[0]["times as fast as eager"] == rows[0]["times as fast as the row before"] == 1


def test_the_engine_benchmark_writes_both_tables(
    tiny_folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "STEPS", 1)
    monkeypatch.setattr(engine, "DISTANCE_SEEDS", (1,))
    engine.run(tiny_folder, "float32", [SMALL], rounds=1)
    assert {path.name for path in results.iterdir()} == {"engine-cpu.json", "waterfall-cpu.json"}
    assert "float32 " in json.loads((results / "engine-cpu.json").read_text())["note"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["bench.engine", "--markdown"])
    engine.main()
    printed = capsys.readouterr().out
    assert "| 128x128 | diffusers |" in printed
    assert "| eager" in printed


def test_quality_beside_none(changing: Engine, results: Path) -> None:
    work = list(unseen(PROFILES["cpu"], 2, plain_prompt))
    measured = quality.measure(changing, work, SMALL, Judge(PROFILES["cpu"].world).eval(), steps=1)
    none, regular, high = quality.rows_of(changing, measured)
    assert (none["equal pictures"], none["PSNR worst"], none["SSIM worst"]) == (2, "equal", 1)
    assert regular["PSNR worst"] <= regular["PSNR median"] < 60
    assert regular["SSIM worst"] < 1
    assert (high["drawn as"], high["PSNR worst"]) == ("regular", regular["PSNR worst"])
    assert none.keys() == regular.keys()
    assert 0 <= none["judge: all %"] <= 100
    assert "of regular" in quality.save_worst(measured, results / "new" / "folders" / "worst.png")
    with Image.open(results / "new" / "folders" / "worst.png") as picture:
        assert picture.size == (3 * SMALL[0], SMALL[1])


def test_quality_writes_what_it_measured(
    tiny_folder: Path, results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge = tmp_path / "judge.pt"
    torch.save({"average": Judge(PROFILES["cpu"].world).state_dict(), "step": 1}, judge)
    asked = ["--pictures", "1", "--steps", "1", "--size", "128x128", "--model", str(tiny_folder), "--judge", str(judge)]
    monkeypatch.setattr(sys, "argv", ["bench.quality", *asked])
    quality.main()
    result = json.loads((results / "quality-cpu.json").read_text())
    assert [row["level"] for row in result["rows"]] == list(ACCELERATIONS)
    assert "LPIPS not measured" in result["note"]


def test_distances() -> None:
    black, grey = (np.full((32, 32, 3), value, np.uint8) for value in (0, 5))
    assert distance.psnr(black, grey) == pytest.approx(20 * np.log10(255 / 5))
    assert distance.decibels(distance.psnr(black, black)) == "equal"
    assert distance.ssim(grey, grey) == 1
    constant = (0.01 * 255) ** 2  # two flat pictures differ in their mean only
    assert distance.ssim(black, grey) == pytest.approx(constant / (25 + constant))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_beside_diffusers(dtype: str, results: Path) -> None:
    blocks.run(2, (128, 128), [dtype], rounds=1, loud=False, small=True)
    rows = json.loads((results / "blocks-cpu-small.json").read_text())["rows"]
    assert [row["who"] for row in rows] == ["diffusers", *ACCELERATIONS]
    assert all(row["seconds a forward"] > 0 for row in rows)
    limits = {"float32": 1e-5, "bfloat16": 5e-2}
    assert max(rows[0]["relative error"], rows[1]["relative error"]) < limits[dtype]


def test_loud_weights_reach_in_a_few_tokens_what_the_trained_model_reaches(results: Path) -> None:
    shape = blocks.shape_of(2, small=True)
    made = engine_of(shape, "cpu", dtype="float32")
    given = blocks.Given.random(made.pipeline.transformer, (128, 128))
    assert 4e4 < blocks.make_loud(made.pipeline.transformer, given) < 2e5
    found: list[torch.Tensor] = []
    for block in made.pipeline.transformer.layers:
        block.feed_forward.w2.register_forward_pre_hook(lambda _layer, inputs: found.append(inputs[0][0].abs().amax(1)))  # type: ignore[union-attr]
    blocks.ours(made.pipeline.transformer, given)()
    assert len(found) == 2
    for loudest, tokens in zip(found, (blocks.CAPTION_SLOTS - blocks.CAPTION_TOKENS, 1), strict=True):
        assert (loudest > 4e4).sum() == tokens
        assert loudest[-1] > 4e4
        assert loudest.median() < 1e3


def test_turns_are_taken() -> None:
    calls: list[str] = []
    seconds = turns.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert [len(taken) for taken in seconds.values()] == [3, 3]
    assert turns.times_as_fast({"a": [1, 2, 4], "b": [3, 4, 16]}, "a", "b") == 3
    assert turns.spread({"a": [2, 1, 4]}, "a") == 4


def test_results_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.results_folder({}) == Path(report.__file__).parent / "results"
    commit, folder = report.commit(), report.results_folder({"BENCH_RESULTS": str(tmp_path / "far" / "away")})
    monkeypatch.setattr(report, "RESULTS", folder)
    report.publish("some", detect("cpu"), [{"a": 1}], "note")
    written = json.loads((tmp_path / "far" / "away" / "some.json").read_text())
    assert (written["rows"], written["conditions"]["commit"]) == ([{"a": 1}], commit)


def test_a_number_never_travels_alone() -> None:
    conditions = report.conditions(detect("cpu"))
    assert conditions.keys() >= {"device_name", "cores", "threads", "torch", "commit", "date"}
    assert report.table([{"a": 1.23456, "b": "x"}]) == "| a    | b |\n|------|---|\n| 1.23 | x |"
