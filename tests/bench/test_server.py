"""The server's benchmark runs, for a moment."""

import json
import sys
from pathlib import Path

import pytest

from bench import report, server


def test_it_measures_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["server", "--rounds", "1", "--seconds", "0.2", "--connections", "2"])
    server.main()
    rows = json.loads((tmp_path / "server.json").read_text())["rows"]
    assert [row["picture"] for row in rows] == ["16x16 png", "512x512 png", "512x512 jpeg"]
    assert all(row["requests/s"] > 0 and 0 < row["p50 ms"] <= row["p99 ms"] for row in rows)
