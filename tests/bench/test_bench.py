"""The benchmarks run: the code that a GPU machine will execute, at a small size on the CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import engine, full_size, gpu, report
from zturbo.engine.machine import detect


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def test_gpu_benchmark_at_a_small_size(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "parity", lambda: ("3 passed", True))  # this suite is not run inside itself
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--small"])
    gpu.main()
    result = json.loads((results / "gpu-small.json").read_text())
    assert "3 passed" in result["note"]
    assert result["conditions"]["torch"] == torch.__version__
    whats = {(row["what"], row["weights"], row["size"]) for row in result["rows"]}
    assert {
        ("zturbo", "int8", "256x128"),
        ("diffusers", "bf16", "128x128"),
        ("vae decoder", "bf16", "128x128"),
    } <= whats
    assert all(row["seconds"] > 0 for row in result["rows"])


def test_a_failed_parity_test_fails_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "parity", lambda: ("1 failed, 3 passed", False))
    for name in ("denoiser_rows", "diffusers_rows", "companion_rows"):
        monkeypatch.setattr(gpu, name, lambda *_: [{"what": "nothing"}])
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--small"])
    with pytest.raises(SystemExit):
        gpu.main()


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


def test_side_by_side_draws_the_same_picture(tiny_folder: Path) -> None:
    row = engine.compare(tiny_folder, "float32", (512, 512), rounds=1)
    assert row["mean difference (levels)"] < 0.01
    assert row["zturbo s"] > 0
    assert row["times faster"] == pytest.approx(row["diffusers s"] / row["zturbo s"], rel=0.01)


def test_turns_are_taken() -> None:
    calls: list[str] = []
    ours, theirs = engine.interleave(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert calls == ["a", "b"] * 4
    assert len(ours) == len(theirs) == 3


def test_a_number_never_travels_alone() -> None:
    conditions = report.conditions(detect("cpu"))
    assert conditions.keys() >= {"device_name", "cores", "threads", "torch", "commit", "date"}
    assert report.table([{"a": 1.23456, "b": "x"}]) == "| a    | b |\n|------|---|\n| 1.23 | x |"
