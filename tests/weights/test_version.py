"""A checkpoint's version follows its content and nothing else."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.weights import models
from zturbo.errors import WeightsNotFound
from zturbo.weights import version
from zturbo.weights.checkpoint import open_checkpoint
from zturbo.weights.version import file_digest, version_of


def test_a_copy_has_the_same_version(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    first, second = open_checkpoint(tiny_folder).version, open_checkpoint(copy).version
    assert first == second
    assert len(first) == 16
    int(first, 16)


def test_one_changed_weight_or_config_member_changes_the_version(tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "changed")
    versions = {open_checkpoint(copy).version}
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    versions.add(open_checkpoint(copy).version)
    config = copy / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 256.0', '"rope_theta": 512.0'))
    versions.add(open_checkpoint(copy).version)
    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"shift": 3.0', '"shift": 6.0'))
    versions.add(open_checkpoint(copy).version)
    assert len(versions) == 4


def test_a_renamed_file_keeps_its_version(tmp_path: Path) -> None:
    _, state = models.transformer()
    path = models.save(state, tmp_path / "one.safetensors")
    before = open_checkpoint(path).version
    assert open_checkpoint(path.rename(tmp_path / "two.safetensors")).version == before
    other = models.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "one.safetensors")
    assert open_checkpoint(other).version != before


def test_a_large_file_is_sampled_at_its_ends_and_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    content = torch.randint(0, 256, (5 << 20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw = bytearray(content.numpy().tobytes())
    path.write_bytes(raw)
    whole = file_digest(path)
    monkeypatch.setattr(version, "FULL_BYTES", 4 << 20)
    monkeypatch.setattr(version, "SAMPLE_BYTES", 1 << 10)
    sampled = file_digest(path)
    assert sampled != whole
    step = ((5 << 20) - (2 << 20)) // version.SAMPLES
    inside, between = (1 << 20) + 3 * step, (1 << 20) + 3 * step + (1 << 10)
    for place, seen in ((0, True), (len(raw) - 1, True), (inside, True), (between, False)):
        raw[place] ^= 1
        path.write_bytes(raw)
        assert (file_digest(path) != sampled) == seen, place
        raw[place] ^= 1
    path.write_bytes(raw[:-1])
    assert file_digest(path) != sampled
    digests = set()
    for size in ((5 << 20), (5 << 20) + 1):  # the same zeros wherever a sample falls
        path.write_bytes(bytes(size))
        digests.add(file_digest(path))
    assert len(digests) == 2


def test_the_role_of_a_file_counts(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    first = version_of([("vae", "c", [one]), ("transformer", "c", [two])])
    assert first == version_of([("transformer", "c", [two]), ("vae", "c", [one])])
    assert first != version_of([("vae", "c", [two]), ("transformer", "c", [one])])
    assert version_of([("vae", "c", [one, two])]) == version_of([("vae", "c", [two, one])])
    with pytest.raises(WeightsNotFound):
        version_of([("vae", "c", [tmp_path / "3"])])
