"""What a container leaves of the host's memory: folders as Linux has them, made here."""

from pathlib import Path

import pytest
import torch

from zturbo.config import Config
from zturbo.engine import engine
from zturbo.engine.machine import control_group_cores, control_group_free
from zturbo.engine.plan import GIB

HOST = 64 * GIB


def limit(group: Path, limit: float | None, used: float, cached: float = 0) -> None:
    """A group with a limit in GiB, or none, of which so much is used, cached files included."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text("max\n" if limit is None else f"{int(limit * GIB)}\n")
    (group / "memory.current").write_text(f"{int(used * GIB)}\n")
    half = int(cached * GIB / 2)
    parts = {"anon": int((used - cached) * GIB), "file": 2 * half, "inactive_file": half, "active_file": half}
    (group / "memory.stat").write_text("".join(f"{name} {size}\n" for name, size in parts.items()))


def free(mount: Path, own: str = "/") -> float:
    """GiB for a process in the group `own`."""
    (membership := mount / "own").write_text(f"1:name=systemd:/elsewhere\n0::{own}\n")
    return control_group_free(HOST, mount, membership) / GIB


def test_cached_files_count_as_free(tmp_path: Path) -> None:
    """A model just copied into a container of 40 GiB fills it with pages that the kernel drops when it must."""
    limit(tmp_path, 40, used=39, cached=38)
    assert free(tmp_path) == 39


def test_the_group_of_this_process_is_asked_and_those_around_it(tmp_path: Path) -> None:
    limit(tmp_path / "a.slice", 30, used=10)
    limit(tmp_path / "a.slice" / "zturbo.service", 16, used=1)
    limit(tmp_path / "b.slice", 2, used=1)
    assert free(tmp_path, "/a.slice/zturbo.service") == 15
    limit(tmp_path / "a.slice", 30, used=25)
    assert free(tmp_path, "/a.slice/zturbo.service") == 5
    limit(tmp_path / "a.slice", None, used=25)
    limit(tmp_path / "a.slice" / "zturbo.service", None, used=1)
    assert free(tmp_path, "/a.slice/zturbo.service") == 64


def test_a_group_that_this_container_does_not_see_leaves_those_above_it(tmp_path: Path) -> None:
    limit(tmp_path, 8, used=1)
    assert free(tmp_path, "/docker/0123") == 7


@pytest.mark.parametrize(("own", "used"), [("/", 9), ("/../elsewhere", 9)])
def test_a_full_group_leaves_nothing(tmp_path: Path, own: str, used: int) -> None:
    limit(tmp_path, 8, used)
    assert free(tmp_path, own) == 0


def test_without_groups_all_is_left(tmp_path: Path) -> None:
    assert free(tmp_path) == 64
    assert control_group_free(HOST, tmp_path, tmp_path / "nothing") == HOST


def test_a_limit_of_processor_time_counts_as_cores(tmp_path: Path) -> None:
    def cores(own: str) -> float:
        (membership := tmp_path / "own").write_text(f"0::{own}\n")
        return control_group_cores(tmp_path, membership)

    (inner := tmp_path / "a.slice" / "zturbo.service").mkdir(parents=True)
    assert cores("/a.slice/zturbo.service") == float("inf")
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "a.slice" / "cpu.max").write_text("250000 100000\n")
    assert cores("/a.slice/zturbo.service") == 2.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert cores("/a.slice/zturbo.service") == 0.5
    assert cores("/b.slice") == float("inf")


def test_no_more_threads_than_the_control_group_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = list[int]()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(engine.Engine, "load", lambda *_: None)
    for cores, threads in ((1.5, 0), (float("inf"), 0), (1.5, 8)):
        monkeypatch.setattr(engine, "control_group_cores", lambda cores=cores: cores)
        engine.Engine.load_configured(Config(threads=threads))
    assert taken == [2, 8], "what the setting says goes before"
