"""A GGUF file: its header parsed here, its blocks decoded by the `gguf` package, a few rows at a time.

The package's own reader trusts counts and lengths in the file (an array of 2^60 elements keeps it busy for
ever), so the header is walked here, within a byte budget. Layout (ggml `docs/gguf.md`): magic, version,
counts, key-value pairs, tensor infos, padding to the alignment, data. GGUF lists axes fastest first and drops
leading axes of size 1.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from zturbo.weights.names import Shape
from zturbo.weights.safetensors_file import open_binary
from zturbo.weights.sources import MAX_ELEMENTS, bad_file

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = MAX_PAIRS = 100_000
"""Qwen3's vocabulary makes a header of 6 MB with 398 tensors; the bounds keep a hostile one to seconds."""

MAX_KEPT_ELEMENTS = 64
"""Metadata arrays longer than this (a tokenizer's vocabulary) are walked and not kept."""

ELEMENTS_AT_ONCE = 1 << 18
"""Elements decoded together: 1 MB in fp32, which stays in cache (measured: 150 to 250 million elements a second)."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

Decode = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Block:
    """How one ggml type is stored: `type_size` bytes per `block_size` elements, and its decoder to fp32."""

    name: str
    block_size: int
    type_size: int
    decode: Decode


@dataclass(frozen=True, slots=True)
class _Entry:
    shape: Shape
    block: _Block
    begin: int
    size_bytes: int


class GgufFile:
    """One GGUF file with a checked header. Holds no open handle; a `TensorSource`.

    Raises:
        WeightsNotFound: there is no such file.
        WeightsError: it is truncated, corrupt, big-endian, or of an unknown version or tensor type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        file, size = open_binary(path)
        with file:
            reader = _Reader(path, file, min(size, MAX_HEADER_BYTES))
            tensor_count, pair_count = _read_start(reader)
            self.metadata = _read_metadata(reader, pair_count)
            infos = [_read_info(reader) for _ in range(tensor_count)]
            alignment = self._alignment()
            data_begin = -(-reader.position // alignment) * alignment
        self._entries = self._checked(infos, alignment, data_begin, size)
        self.shapes: Mapping[str, Shape] = {name: entry.shape for name, entry in self._entries.items()}

    @property
    def architecture(self) -> str | None:
        """`general.architecture`; absent in files of some converters."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None

    def tensors(self, names: frozenset[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for name in sorted(names, key=lambda name: self._entries[name].begin):
            yield name, self._decode(name, dtype)

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if type(value) is not int or not 1 <= value <= 1 << 20 or value & (value - 1):
            raise bad_file(self.path, f"has the alignment {value!r}, expected a power of two")
        return value

    def _checked(self, infos: list["_Info"], alignment: int, data_begin: int, size: int) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        blocks = _blocks()
        for info in infos:
            if info.name in entries:
                raise bad_file(self.path, f"has two tensors named {info.name!r}")
            entries[info.name] = self._entry(info, blocks, alignment, data_begin)
        position = data_begin
        for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            if entry.begin < position:
                raise bad_file(self.path, f"is corrupt: the tensor {name!r} overlaps its neighbour")
            position = entry.begin + entry.size_bytes
        if position > size:
            raise bad_file(self.path, f"is truncated: the tensors need {position} bytes, the file has {size}")
        return entries

    def _entry(self, info: "_Info", blocks: Mapping[int, _Block], alignment: int, data_begin: int) -> _Entry:
        if (block := blocks.get(info.kind)) is None:
            known = ", ".join(sorted(block.name for block in blocks.values()))
            reason = f"stores {info.name!r} as ggml type {info.kind}; known are {known}"
            raise bad_file(self.path, reason, "use another quantization of the model")
        if info.shape[-1] % block.block_size:
            raise bad_file(
                self.path, f"stores {info.name!r} of shape {list(info.shape)} in blocks of {block.block_size}"
            )
        if info.offset % alignment:
            raise bad_file(self.path, f"is corrupt: {info.name!r} lies at the unaligned offset {info.offset}")
        size_bytes = math.prod(info.shape) // block.block_size * block.type_size
        return _Entry(self._original_shape(info), block, data_begin + info.offset, size_bytes)

    def _original_shape(self, info: "_Info") -> Shape:
        """ComfyUI-GGUF stores odd row lengths reshaped, and the true shape beside them."""
        shape = self.metadata.get(f"comfy.gguf.orig_shape.{info.name}")
        if not isinstance(shape, list):
            return info.shape
        if not all(type(n) is int and n > 0 for n in shape) or math.prod(shape) != math.prod(info.shape):
            raise bad_file(
                self.path, f"gives {info.name!r} the original shape {shape}, its data has {list(info.shape)}"
            )
        return Shape(shape)

    def _decode(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Decode block by block into one tensor of `dtype`."""
        entry = self._entries[name]
        out = torch.empty(math.prod(entry.shape), dtype=dtype)
        blocks_at_once = max(1, ELEMENTS_AT_ONCE // entry.block.block_size)
        per_read = blocks_at_once * entry.block.type_size
        done = 0
        try:
            with self.path.open("rb") as file:
                file.seek(entry.begin)
                for begin in range(0, entry.size_bytes, per_read):
                    raw = np.empty(min(per_read, entry.size_bytes - begin), np.uint8)
                    if file.readinto(raw.data) < raw.size:
                        break
                    values = torch.from_numpy(_decoded(entry.block, raw))
                    out[done : done + values.numel()] = values
                    done += values.numel()
        except OSError as error:
            raise bad_file(self.path, f"cannot be read: {error}", "") from error
        if done < out.numel():
            raise bad_file(self.path, f"ends inside the tensor {name!r}: it was cut off after it was opened")
        return out.reshape(entry.shape)


def _decoded(block: _Block, raw: np.ndarray[Any, Any]) -> Any:
    # Corrupt scales may hold infinities; their products are values like any other and no reason to warn.
    with np.errstate(all="ignore"):
        return block.decode(raw.reshape(1, -1)).reshape(-1)


@lru_cache(maxsize=1)
def _blocks() -> Mapping[int, _Block]:
    """Every ggml type that can be decoded: the plain floats and what the gguf package's quants cover."""
    import gguf
    from gguf import quants

    floats: dict[int, Decode] = {
        int(gguf.GGMLQuantizationType.F32): lambda raw: raw.view(np.float32),
        int(gguf.GGMLQuantizationType.F16): lambda raw: raw.view(np.float16).astype(np.float32),
        int(gguf.GGMLQuantizationType.F64): lambda raw: raw.view(np.float64).astype(np.float32),
    }
    blocks: dict[int, _Block] = {}
    for kind, (block_size, type_size) in gguf.GGML_QUANT_SIZES.items():
        decode = floats.get(int(kind))
        if decode is None and _decodable(quants, kind, type_size):
            decode = _decoder(quants, kind)
        if decode is not None:
            blocks[int(kind)] = _Block(kind.name, block_size, type_size, decode)
    return blocks


def _decoder(quants: Any, kind: Any) -> Decode:
    return lambda raw: quants.dequantize(raw, kind)


def _decodable(quants: Any, kind: Any, type_size: int) -> bool:
    """Whether the package has a decoder; asked by decoding one block of zeros."""
    try:
        quants.dequantize(np.zeros((1, type_size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


# --- header --------------------------------------------------------------------------------------------------


class _Reader:
    """Bounded reads from the start of a file."""

    def __init__(self, path: Path, file: BinaryIO, limit: int) -> None:
        self.path, self._file, self._limit, self.position = path, file, limit, 0

    def take(self, count: int) -> bytes:
        if self.position + count > self._limit:
            reason = f"its header needs {count} bytes at {self.position}, beyond {self._limit}"
            raise bad_file(self.path, f"is truncated or corrupt: {reason}")
        raw = self._file.read(count)
        if len(raw) != count:
            raise bad_file(self.path, f"ends inside its header at byte {self.position + len(raw)}")
        self.position += count
        return raw

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    shape: Shape
    kind: int
    offset: int


def _read_start(reader: _Reader) -> tuple[int, int]:
    """(tensor count, key-value count)."""
    if reader.take(4) != MAGIC:
        raise bad_file(reader.path, "is not a GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        kind = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise bad_file(
            reader.path, f"is a {kind} GGUF file, supported are little-endian versions 2 and 3", "convert it again"
        )
    tensors, pairs = reader.number("Q"), reader.number("Q")
    if tensors > MAX_TENSORS or pairs > MAX_PAIRS:
        raise bad_file(reader.path, f"announces {tensors} tensors and {pairs} keys, at most {MAX_TENSORS} are allowed")
    return tensors, pairs


def _read_metadata(reader: _Reader, count: int) -> Mapping[str, Any]:
    pairs: dict[str, Any] = {}
    for _ in range(count):
        key = reader.text()
        if key in pairs:
            raise bad_file(reader.path, f"has the key {key!r} twice")
        pairs[key] = _read_value(reader, key, reader.number("I"))
    return pairs


def _read_value(reader: _Reader, key: str, kind: int) -> Any:
    if kind == _STRING:
        return reader.text()
    if kind in _SCALARS:
        return reader.number(_SCALARS[kind])
    if kind != _ARRAY:
        raise bad_file(reader.path, f"has the key {key!r} of unknown type {kind}")
    element, length = reader.number("I"), reader.number("Q")
    if element in _SCALARS:
        raw = reader.take(length * struct.calcsize(_SCALARS[element]))
        return list(struct.unpack(f"<{length}{_SCALARS[element]}", raw)) if length <= MAX_KEPT_ELEMENTS else None
    if element != _STRING:
        raise bad_file(reader.path, f"has the key {key!r}, an array of type {element}")
    kept = [text for i in range(length) if (text := reader.text()) is not None and i < MAX_KEPT_ELEMENTS]
    return kept if length <= MAX_KEPT_ELEMENTS else None


def _read_info(reader: _Reader) -> _Info:
    name = reader.text()
    axes = reader.number("I")
    if not 1 <= axes <= 4:
        raise bad_file(reader.path, f"gives {name!r} {axes} axes, ggml has 1 to 4")
    shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
    if math.prod(shape) > MAX_ELEMENTS or not all(shape):
        raise bad_file(reader.path, f"gives {name!r} the shape {list(shape)}")
    return _Info(name, shape, reader.number("I"), reader.number("Q"))
