"""The benchmarks run: the code that a GPU machine will execute, at a small size on the CPU."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import engine, full_size, gpu, report
from zturbo.engine.machine import detect
from zturbo.params import ACCELERATIONS


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


def test_gpu_waterfall(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu_part("waterfall", results, monkeypatch)
    distances = {row["pass"].partition(":")[0]: row["distance of a forward"] for row in rows}
    assert list(distances) == ["eager, PyTorch's own attention", "attention", "fused kernels", "CUDA graphs",
                               "int8 products", "fp8 products"]  # fmt: skip
    assert all(distances[row["pass"].partition(":")[0]] < 5e-3 for row in rows if row["lossless"] == "yes")
    assert 1e-3 < distances["int8 products"] < distances["fp8 products"] < 0.05


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
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.ROWS, "denoise", broken)
    with pytest.raises(SystemExit):
        gpu_part("denoise", results, monkeypatch)
    result = json.loads((results / "gpu-denoise-small.json").read_text())
    assert result["rows"] == [{"what": "measured before"}]
    assert "out of memory" in result["note"]


def test_a_failed_parity_test_fails_the_benchmark(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "parity", lambda: ("1 failed, 3 passed", False))
    with pytest.raises(SystemExit):
        gpu_part("parity", results, monkeypatch)


def test_a_part_without_its_packages_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.NEEDS, "http", ("no_such_library",))
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu", "--small", "--part", "http"])
    gpu.main()
    assert "http: not run, no_such_library not installed" in capsys.readouterr().out


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
