"""Strict loading: every parameter filled exactly once, every name of the file accounted for.

The module was made on the meta device and costs nothing; each parameter is allocated on the target device
when its first rows arrive. Peak memory is the module in its final dtype plus one tensor of the stream.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from zturbo.errors import WeightsError
from zturbo.params import shown
from zturbo.weights.names import NameTable, Placement, Shape

NAMED_IN_ERRORS = 10


@runtime_checkable
class TakesRows(Protocol):
    """A layer that stores its weight in a form of its own (quantized) and is filled by rows."""

    def load_rows(self, first_row: int, rows: torch.Tensor) -> None: ...


def some(names: Iterable[str]) -> str:
    """The first ten names in order, and how many there are; made safe to show, for a file's author chose them."""
    names = sorted(names)
    more = f" ... ({len(names)} in all)" if len(names) > NAMED_IN_ERRORS else ""
    return ", ".join(map(_safe, names[:NAMED_IN_ERRORS])) + more


def _safe(name: str) -> str:
    """A plain name as it is, any other in quotes, cut and escaped."""
    return name if name.isascii() and name.isprintable() and len(name) <= 200 else shown(name)


def check_names(shapes: Mapping[str, Shape], table: NameTable, source: Path) -> frozenset[str]:
    """The names to read, once nothing is missing, left over or of another shape.

    Raises:
        WeightsError: naming the first ten offenders and their number.
    """
    if missing := table.placements.keys() - shapes.keys():
        raise WeightsError(
            f"{source}: {len(missing)} tensors are missing: {some(missing)}",
            f"the file does not hold a whole model of this config ({table.layout} names)",
        )
    if left_over := shapes.keys() - table.placements.keys() - table.ignored:
        raise WeightsError(
            f"{source}: {len(left_over)} tensors do not belong to this model: {some(left_over)}",
            f"the file is of another model or config ({table.layout} names were expected)",
        )
    for name, placement in table.placements.items():
        check_shape(name, shapes[name], placement, source)
    return frozenset(table.placements)


def check_shape(name: str, got: Shape, placement: Placement, source: Path) -> None:
    """Shapes must agree; axes of size 1 do not count (GGUF drops them, 1x1 convolutions add them)."""
    if [n for n in got if n != 1] != [n for n in placement.shape if n != 1]:
        raise WeightsError(
            f"{source}: {name} has the shape {list(got)}, expected {list(placement.shape)}",
            "the file is of another model or config",
        )


def load_weights(
    module: nn.Module,
    tensors: Iterable[tuple[str, torch.Tensor]],
    placements: Mapping[str, Placement],
    *,
    source: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    keep: bool = False,
) -> None:
    """Fill every parameter of `module` from a stream of (checkpoint name, tensor).

    With `keep` the stream gives its tensors away: one that is a whole parameter becomes it without a copy.

    A layer with a method `load_rows(first_row, rows)` receives the rows of its `weight`, in `dtype` on `device`;
    all other parameters are allocated here. Buffers are the module's own business.

    Raises:
        WeightsError: a tensor is missing, left over, repeated, of another shape, or not of floating point.
    """
    parameters = _Parameters(module, dtype, torch.device(device), keep)
    seen: set[str] = set()
    left_over: set[str] = set()
    for name, tensor in tensors:
        if (placement := placements.get(name)) is None:
            left_over.add(name)
            continue
        if name in seen:
            raise WeightsError(f"{source}: the tensor {name} came twice")
        check_shape(name, tuple(tensor.shape), placement, source)
        if not tensor.is_floating_point():
            raise WeightsError(f"{source}: {name} holds {tensor.dtype} without a known quantization format")
        parameters.place(placement, tensor.reshape(placement.shape))
        seen.add(name)
    if missing := placements.keys() - seen:
        raise WeightsError(f"{source}: {len(missing)} tensors are missing: {some(missing)}")
    if left_over:
        raise WeightsError(f"{source}: {len(left_over)} tensors do not belong to this model: {some(left_over)}")
    parameters.check_complete()


class _Parameters:
    """The parameters of one module while they are being filled."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device, keep: bool) -> None:
        self._module, self._dtype, self._device, self._keep = module, dtype, device, keep
        self._started: set[str] = set()

    def place(self, placement: Placement, tensor: torch.Tensor) -> None:
        path, _, leaf = placement.parameter.rpartition(".")
        owner = self._module.get_submodule(path)
        if leaf == "weight" and isinstance(owner, TakesRows):
            owner.load_rows(placement.first_row, tensor.to(self._device, self._dtype))
            return
        if self._keep and owner.get_parameter(leaf).shape == tensor.shape:
            kept = tensor.to(self._device, self._dtype)
            setattr(owner, leaf, nn.Parameter(kept, requires_grad=owner.get_parameter(leaf).requires_grad))
            return
        parameter = self._allocated(placement.parameter, owner, leaf)
        assert parameter.shape[1:] == tensor.shape[1:], placement
        assert placement.rows.stop <= parameter.shape[0], placement
        with torch.no_grad():
            parameter[placement.first_row : placement.rows.stop].copy_(tensor)

    def _allocated(self, name: str, owner: nn.Module, leaf: str) -> nn.Parameter:
        parameter = owner.get_parameter(leaf)
        if name in self._started:
            return parameter
        self._started.add(name)
        empty = torch.empty(parameter.shape, dtype=self._dtype, device=self._device)
        fresh = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        setattr(owner, leaf, fresh)
        return fresh

    def check_complete(self) -> None:
        """The table of names covers the whole module: anything else is a mistake of ours."""
        untouched = [name for name, parameter in self._module.named_parameters() if parameter.is_meta]
        assert not untouched, f"no name places anything into {untouched[:NAMED_IN_ERRORS]}"
