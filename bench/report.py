"""What a number needs beside it: device, versions, commit; and the files that keep both.

The files lie in bench/results, or in the folder that the environment variable BENCH_RESULTS names.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from zturbo import __version__
from zturbo.engine.machine import Machine

HERE = Path(__file__).parent


def results_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the files lie."""
    return Path(environment.get("BENCH_RESULTS") or HERE / "results")


RESULTS = results_folder()


def conditions(machine: Machine) -> dict[str, Any]:
    """Device, versions, threads and commit of a run."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": machine.device,
        "device_name": machine.name,
        "cores": machine.cores,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "zturbo": __version__,
        "commit": commit(),
    }


def commit() -> str:
    """Short hash of the checked-out commit, with a plus where the tree differs from it in more than results."""
    try:
        git = ["git", "-C", str(HERE.parent)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)bench/results"],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed.stdout else "")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    heads = list(rows[0])
    cells = [[f"{row[head]:.3g}" if isinstance(row[head], float) else str(row[head]) for head in heads] for row in rows]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    head = "| " + " | ".join(name.ljust(width) for name, width in zip(heads, widths, strict=True)) + " |"
    return "\n".join([head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines])


def keep(name: str, machine: Machine, rows: Sequence[dict[str, Any]], note: str) -> dict[str, Any]:
    """Write NAME.json into the results; returns what it holds."""
    result = {"name": name, "note": note, "conditions": conditions(machine), "rows": list(rows)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def publish(name: str, machine: Machine, rows: Sequence[dict[str, Any]], note: str) -> None:
    """`keep`, and print the table and the JSON line."""
    result = keep(name, machine, rows, note)
    print(f"\n{table(rows)}\n\n{note}\n{json.dumps(result)}")
