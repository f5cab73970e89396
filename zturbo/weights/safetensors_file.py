"""A safetensors file, read without trusting it.

The header is checked in full before any data is touched: length, JSON, duplicate names, dtypes, shapes, and
that the tensors tile the data section exactly. Data is then read with plain file reads into fresh tensors and
not through a memory map: a map turns a file that is cut off while it is being read into a killed process,
and counts every page of the file as memory of ours.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zturbo.errors import WeightsError, WeightsNotFound
from zturbo.params import shown
from zturbo.weights.names import Shape
from zturbo.weights.sources import MAX_DIMENSIONS, MAX_ELEMENTS, StoredTensor, bad_file

READ_BYTES = 1 << 30
"""One call reads at most this much; Linux ends longer ones at 2 GiB."""

CAST_BYTES = 4 << 20
"""Stored bytes that are cast together. Reusing the buffer is what makes it fast: fresh memory costs page faults."""

MAX_HEADER_BYTES = 16 << 20
"""The published 6B needs 49 KB; parsing this much JSON stays below 200 MB of memory."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """One file with a checked header. Holds no open handle.

    Raises:
        WeightsNotFound: there is no such file.
        WeightsError: it is a folder, unreadable, truncated or corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        header, data_begin, size = _read_header(path)
        self.metadata = _checked_metadata(path, header.pop("__metadata__", {}))
        self.entries: Mapping[str, StoredTensor] = {
            name: _checked_entry(path, name, entry, data_begin) for name, entry in header.items()
        }
        _check_tiling(path, self.entries, data_begin, size)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on the CPU, owning its memory, as stored or cast to `dtype`."""
        return read_stored(name, self.entries[name], dtype)


def read_stored(name: str, entry: StoredTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Read one tensor, as stored or cast piece by piece to `dtype`.

    Peak memory: the result, and 4 MB if it is cast.
    """
    out = torch.empty(entry.shape, dtype=dtype or entry.dtype)
    flat = out.view(-1)
    try:
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.begin)
            if out.dtype == entry.dtype:
                complete = _fill(file, flat)
            else:
                piece = torch.empty(min(CAST_BYTES // entry.dtype.itemsize, flat.numel()), dtype=entry.dtype)
                complete = all(_fill_cast(file, part, piece) for part in torch.split(flat, max(1, piece.numel())))
    except OSError as error:
        raise bad_file(entry.file, f"cannot be read: {error}", "") from error
    if not complete:
        raise bad_file(entry.file, f"ends inside the tensor {name!r}: it was cut off after it was opened")
    return out


def _fill(file: io.RawIOBase, flat: torch.Tensor) -> bool:
    """Read a one-dimensional tensor's bytes; False where the file ends before."""
    if not flat.numel():
        return True  # an empty tensor cannot be seen as bytes
    view, done = memoryview(flat.view(torch.uint8).numpy().data), 0
    while done < len(view) and (count := file.readinto(view[done : done + READ_BYTES])):
        done += count
    return done == len(view)


def _fill_cast(file: io.RawIOBase, part: torch.Tensor, piece: torch.Tensor) -> bool:
    """Read `part` through the buffer `piece`, which has the stored dtype and is used again."""
    piece = piece[: part.numel()]
    complete = _fill(file, piece)
    part.copy_(piece)
    return complete


def open_binary(path: Path) -> tuple[Any, int]:
    """Open a regular file for reading: (file, size in bytes)."""
    try:
        if path.is_dir():
            raise WeightsError(f"{path}: is a folder, expected a file", "give the weights file inside it")
        if not path.is_file():
            raise WeightsNotFound(f"{path}: there is no such file", "check the path")
        return path.open("rb"), path.stat().st_size
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path!s}: cannot be opened: {error}", "check the path and its permissions") from error


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON header, the offset of the data, and the file's size."""
    file, size = open_binary(path)
    with file:
        if size < 8:
            raise bad_file(path, f"holds {size} bytes, too few for a safetensors header")
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            reason = f"announces a header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed"
            raise bad_file(path, reason, "the file is corrupt, or not a safetensors file")
        if 8 + length > size:
            raise bad_file(path, f"is truncated: the header needs {8 + length} bytes, the file has {size}")
        raw = file.read(length)
    return _parse(path, raw), 8 + length, size


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise bad_file(path, f"has an unreadable header ({error})") from error
    if not isinstance(header, dict):
        raise bad_file(path, f"has a header that is a JSON {type(header).__name__}, expected an object")
    return header


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {shown(twice)} occurs twice")
    return members


def _checked_metadata(path: Path, metadata: Any) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad_file(path, "has a __metadata__ that is not an object of strings")
    return metadata


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS * 8


def _checked_entry(path: Path, name: str, entry: Any, data_begin: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_file(path, f"describes {name!r} without exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise bad_file(path, f"stores {name!r} as {entry['dtype']!r}, supported are {', '.join(_DTYPES)}", "")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise bad_file(path, f"gives {name!r} the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise bad_file(path, f"gives {name!r} the offsets {offsets!r}")
    dtype = _DTYPES[entry["dtype"]]
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise bad_file(path, f"gives {name!r} {offsets[1] - offsets[0]} bytes, its shape {shape} needs {expected}")
    return StoredTensor(path, dtype, Shape(shape), data_begin + offsets[0], data_begin + offsets[1])


def _check_tiling(path: Path, entries: Mapping[str, StoredTensor], data_begin: int, size: int) -> None:
    """Tensors must cover the data section once each, without gap: the format's own rule."""
    position = data_begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            kind = "overlaps its neighbour" if entry.begin < position else "leaves a gap before it"
            raise bad_file(path, f"is corrupt: {name!r} {kind} at byte {entry.begin}")
        position = entry.end
    if position > size:
        raise bad_file(path, f"is truncated: the tensors need {position} bytes, the file has {size}")
    if position < size:
        raise bad_file(path, f"has {size - position} bytes after its last tensor")
