"""One component's folder of a diffusers or transformers model: a single file, or shards behind an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zturbo.errors import WeightsNotFound
from zturbo.weights.safetensors_file import SafetensorsFile, open_binary, read_stored
from zturbo.weights.sources import LAYER_FORMATS, StoredTensor, StoredTensors, bad_file

STEMS = ("diffusion_pytorch_model", "model")
"""diffusers' and transformers' file names for a component's weights."""

MAX_INDEX_BYTES = 16 << 20


class Shards:
    """The files of one index, seen as one.

    Raises:
        WeightsError: a shard is missing or lies outside the folder, or a tensor is not where the index says.
    """

    def __init__(self, index: Path) -> None:
        self.path = index.parent
        where = _read_index(index)
        shards = {name: SafetensorsFile(_shard(index, name)) for name in sorted(set(where.values()))}
        self.files = tuple(shard.path for shard in shards.values())
        self.metadata = {key: value for shard in shards.values() for key, value in shard.metadata.items()}
        formats = {text for shard in shards.values() if (text := shard.metadata.get(LAYER_FORMATS))}
        if len(formats) > 1:  # one would hide the others, and their layers would be read as something else
            raise bad_file(index, f"has shards of different {LAYER_FORMATS}, which is not read")
        self.entries: Mapping[str, StoredTensor] = {
            name: entry for shard in shards.values() for name, entry in shard.entries.items()
        }
        for file, shard in shards.items():
            listed = {name for name, holder in where.items() if holder == file}
            if wrong := sorted(listed.symmetric_difference(shard.entries)):
                raise bad_file(index, f"and the shard {file} disagree on where {wrong[0]!r} is ({len(wrong)} names)")

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return read_stored(name, self.entries[name], dtype)


def _read_index(index: Path) -> dict[str, str]:
    file, size = open_binary(index)
    with file:
        if size > MAX_INDEX_BYTES:
            raise bad_file(index, f"holds {size} bytes, an index has at most {MAX_INDEX_BYTES}")
        raw = file.read()
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise bad_file(index, f"is not JSON: {error}") from error
    where = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
        raise bad_file(index, "has no weight_map from tensor names to file names")
    return where


def _shard(index: Path, name: str) -> Path:
    """A shard's path; only plain names beside the index are allowed."""
    if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
        raise bad_file(index, f"names the shard {name!r}, expected the name of a .safetensors file beside it", "")
    path = index.parent / name
    if not path.is_file():
        raise WeightsNotFound(f"{index}: the shard {name} is missing", "download or copy it to the same folder")
    return path


def open_component(folder: Path) -> StoredTensors:
    """The weights inside one component folder.

    Raises:
        WeightsNotFound: no weights in a known name; says when only a pickle is there.
    """
    for stem in STEMS:
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return Shards(index)
        if (file := folder / f"{stem}.safetensors").is_file():
            return SafetensorsFile(file)
    wanted = " or ".join(f"{stem}.safetensors[.index.json]" for stem in STEMS)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise WeightsNotFound(
            f"{folder}: holds only pickled weights ({pickles[0]}), which could run code when loaded",
            f"use a copy of the model that has {wanted}",
        )
    raise WeightsNotFound(f"{folder}: holds no weights, expected {wanted}", "download the model's files again")
