"""Kernels are compiled for real cards, which needs none: what only the compiler refuses shows on any Linux computer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="triton has no build for this system")


def test_every_kernel_compiles_for_ampere_ada_and_hopper(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceleration.compile_kernels"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    lines = done.stdout.splitlines()
    assert "norm_and_rotate 90 none" in lines
    assert "silu_product 89 fp8" in lines
    assert "add_gated_norm 90 fp16" in lines
    assert len(lines) == 2 * 4 + 3 * 4 + 4 * 4 + 3 * 3  # four kernels in every form, one in two, one in one
