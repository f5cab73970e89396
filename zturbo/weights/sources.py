"""What a reader offers: shapes known before a byte of data is read, then one tensor at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from zturbo.errors import WeightsError
from zturbo.weights.names import Shape

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40
"""No tensor of any model is near either bound; a header that exceeds them is corrupt."""
LAYER_FORMATS = "_quantization_metadata"
"""Metadata that says how layers are quantized, as JSON."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One entry of a safetensors header: what is stored, and where in the file (absolute byte offsets)."""

    file: Path
    dtype: torch.dtype
    shape: Shape
    begin: int
    end: int


class StoredTensors(Protocol):
    """Tensors as they lie in one or more files, quantization scales and markers included."""

    @property
    def path(self) -> Path: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def entries(self) -> Mapping[str, StoredTensor]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor: ...


class TensorSource(Protocol):
    """Weights of one or more components, decoded: what `load_weights` consumes."""

    @property
    def path(self) -> Path: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def tensors(self, names: frozenset[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the named tensors in file order, decoded or cast to `dtype`; integers without a format come as stored.

        Each tensor owns its memory and is the receiver's to keep.
        Peak memory: one tensor in `dtype`, and for a scaled one its stored bytes.
        """
        ...


def bad_file(path: Path, reason: str, hint: str = "the file is damaged: download or copy it again") -> WeightsError:
    """The one form of every complaint about a file's content."""
    return WeightsError(f"{path}: {reason}", hint)
