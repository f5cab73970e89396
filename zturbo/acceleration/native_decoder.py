"""The picture decoder on the C kernels, put in from outside; parameters and their names stay.

    nativize_decoder(vae.decoder, "fp32")

Pixels lie as (height, width, channels). Each convolution is one call: it norms and activates what it reads, adds the
shortcut, and sums up its result for the next norm, so that a layer's values cross the memory once in each direction.
A convolution of doubled pixels is done as four smaller ones of the picture before (`native.doubled`).
"""

import ctypes
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zturbo.acceleration import native
from zturbo.acceleration.native import (
    PANEL,
    ConvStruct,
    Kind,
    Packed,
    WeightsStruct,
    doubled,
    grouped,
    pack_convolution,
    round_up,
)
from zturbo.engine.breath import breathe
from zturbo.engine.lanes import on_threads
from zturbo.models.vae import Attention, Decoder, ResnetBlock, UpBlock

MOST_KEPT = 256 << 20
"""Bytes of working memory that are kept for the next picture: enough for 1024x1024 by nano."""
_kept: list[Tensor] = []
"""Working memory of earlier pictures; a picture takes a piece out, so that two side by side have their own."""
ROOMS = 3
"""Layers whose values lie in memory at a time: what a resnet reads, what is between its convolutions, its result."""
NEIGHBOURS = 4
"""Pixels that the last convolution, to three channels, computes at once, where sizes are multiples of them."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """A layer's values."""

    values: Tensor
    """(H, W, C) fp32."""
    sums: Tensor | None
    """(pieces, 2, C) fp32: sums of the values and of their squares."""


class Convolution(nn.Module):
    """A 3x3 convolution in the kernels' layout, of the pixels as they are or doubled, `group` of them at once."""

    bias: Tensor
    totals: Tensor | None

    def __init__(self, conv: nn.Conv2d, kind: Kind, *, twice: bool = False, group: int = 1) -> None:
        super().__init__()
        assert conv.bias is not None
        self.channels, self.twice, self.group = conv.out_channels, twice, group
        weight = F.pad(conv.weight.float(), (0, 0) * 3 + (0, -conv.out_channels % PANEL))
        if twice:
            self.packed = pack_convolution(doubled(weight).flatten(0, 1), kind)
        else:
            self.packed = pack_convolution(grouped(weight[: self.channels], self.group), kind)
        bias = conv.bias.float().repeat(self.group)
        self.register_buffer("bias", F.pad(bias, (0, -bias.numel() % PANEL)), persistent=False)
        totals = None if self.packed.sums is None else self.packed.sums.sum(dim=0, dtype=torch.int32)
        self.register_buffer("totals", totals, persistent=False)

    def run(
        self,
        x: Pixels,
        norm: nn.GroupNorm | None = None,
        before: Tensor | None = None,
        source: tuple[Tensor, "Shortcut"] | None = None,
        room: Tensor | None = None,
    ) -> Pixels:
        """Convolve pixels, after norm and SiLU where a norm is given.

        Args:
            x: (H, W, C).
            norm: its weights; the statistics are x's.
            before: (H, W, N) to be added; the result may take its place.
            source: (H, W, M) to be added after a 1x1 convolution, and that.
            room: memory for the result; left out, it is new.
        """
        breathe()
        height, width, channels = x.values.shape
        assert width % self.group == 0
        factor = offset = None
        if norm is not None:
            factor, offset = _norm(x, norm)
        shape = (height << self.twice, width << self.twice, self.channels)
        out = torch.empty(shape) if room is None else room[: math.prod(shape)].view(shape)
        weights = self.packed.struct()
        weights.count //= 4 if self.twice else 1
        shortcut = WeightsStruct() if source is None else source[1].packed.struct()
        work = ConvStruct(
            x.values.data_ptr(), _address(factor), _address(offset), _address(before),
            _address(source and source[0]), self.bias.data_ptr(), _address(source and source[1].bias),
            out.data_ptr(), None, weights, shortcut, _address(self.totals),
            height, width, channels, self.channels, 0 if source is None else source[0].shape[2], self.twice,
            self.group, native.threads(),
        )  # fmt: skip
        kernels, sums = native.library(), None
        if self.channels % PANEL == 0:
            sums = torch.empty(kernels.zt_conv_pieces(ctypes.byref(work)), 2, self.channels)
            work.sums = sums.data_ptr()
        if kernels.zt_conv(ctypes.byref(work)):
            raise MemoryError(f"no memory for a convolution of {width}x{height} pixels")
        return Pixels(out, sums)


class Shortcut(nn.Module):
    """A 1x1 convolution in the kernels' layout, in fp32."""

    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.packed: Packed = pack_convolution(conv.weight, "fp32")
        self.register_buffer("bias", conv.bias.float(), persistent=False)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _norm(x: Pixels, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Factor and offset of each channel (C)."""
    height, width, channels = x.values.shape
    assert x.sums is not None
    factor, offset = torch.empty(channels), torch.empty(channels)
    weight, bias = norm.weight.float(), norm.bias.float()
    native.library().zt_norm(
        ctypes.c_void_p(x.sums.data_ptr()), x.sums.shape[0], channels, norm.num_groups,
        ctypes.c_int64(height * width), ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(bias.data_ptr()),
        ctypes.c_float(norm.eps), ctypes.c_void_p(factor.data_ptr()), ctypes.c_void_p(offset.data_ptr()),
    )  # fmt: skip
    return factor, offset


class NativeDecoder(Decoder):
    """A `Decoder` on the C kernels."""

    native: nn.ModuleDict
    """By the convolutions' names, with dots as colons."""

    def forward(self, latents: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,3,h*f,w*f) in the latents' dtype; memory as (B, h*f, w*f, 3)."""
        with native.only_kernels():
            memory = _memory(ROOMS * _largest(self, latents.shape[2] * latents.shape[3]))
            pictures = [
                self._picture(one.float().permute(1, 2, 0).contiguous(), memory).to(latents.dtype, copy=True)
                for one in latents
            ]
            if memory.nbytes <= MOST_KEPT:
                _kept.append(memory)
            images = torch.stack(pictures) if len(pictures) > 1 else pictures[0].unsqueeze(0)
            return images.permute(0, 3, 1, 2)

    def _picture(self, latents: Tensor, memory: Tensor) -> Tensor:
        """(h, w, C) -> (h*f, w*f, 3), which lies in `memory`: its pieces go round."""
        rooms = list(memory.view(ROOMS, -1))
        x = self._convolution("conv_in").run(Pixels(latents, None), room=rooms[0])
        x = self._resnet("mid_block.resnets.0", x, rooms)
        for attention in cast(list[Attention], self.mid_block.attentions):
            x = _attend(attention, x)
        x = self._resnet("mid_block.resnets.1", x, rooms)
        for index, block in enumerate(cast(list[UpBlock], self.up_blocks)):
            for place in range(len(block.resnets)):
                x = self._resnet(f"up_blocks.{index}.resnets.{place}", x, rooms)
            if len(block.upsamplers):
                x = self._convolution(f"up_blocks.{index}.upsamplers.0.conv").run(x, room=_free(rooms, x)[0])
        return self._convolution("conv_out").run(x, self.conv_norm_out, room=_free(rooms, x)[0]).values

    def _convolution(self, name: str) -> Convolution:
        return cast(Convolution, self.native[name.replace(".", ":")])

    def _resnet(self, name: str, x: Pixels, rooms: list[Tensor]) -> Pixels:
        resnet, (first, second, *_) = cast(ResnetBlock, self.get_submodule(name)), _free(rooms, x)
        hidden = self._convolution(f"{name}.conv1").run(x, resnet.norm1, room=first)
        last = self._convolution(f"{name}.conv2")
        if resnet.conv_shortcut is None:
            return last.run(hidden, resnet.norm2, before=x.values, room=x.values.view(-1))
        shortcut = cast(Shortcut, self.native[f"{name}.conv_shortcut".replace(".", ":")])
        return last.run(hidden, resnet.norm2, source=(x.values, shortcut), room=second)


def working_bytes(decoder: Decoder, latents: int) -> int:
    """Memory in which a picture of so many latents is decoded; values are fp32 whatever the weights are."""
    return ROOMS * _largest(decoder, latents) * 4


def _largest(decoder: Decoder, size: int) -> int:
    """Values of the largest layer of so many latents, in whole cache lines."""
    largest = 0
    for block in cast(list[UpBlock], decoder.up_blocks):
        channels = max(max(one.conv1.in_channels, one.conv1.out_channels) for one in _resnets(block))
        largest = max(largest, size * channels)
        if len(block.upsamplers):
            size *= 4
            largest = max(largest, size * _resnets(block)[-1].conv1.out_channels)
    return round_up(largest)


def _memory(count: int) -> Tensor:
    """(at least `count`,) fp32: fresh memory costs as much time as half the products."""
    try:
        memory = _kept.pop()
    except IndexError:
        memory = torch.empty(0)
    if memory.numel() < count:
        memory = torch.empty(count)
        native.library().zt_large_pages(ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(memory.nbytes))
    return memory


def _resnets(block: UpBlock) -> list[ResnetBlock]:
    return cast(list[ResnetBlock], list(block.resnets))


def _free(rooms: list[Tensor], x: Pixels) -> list[Tensor]:
    """The pieces of memory that pixels do not lie in."""
    return [room for room in rooms if room.data_ptr() != x.values.data_ptr()]


def _attend(attention: Attention, x: Pixels) -> Pixels:
    """Attention over all positions, by PyTorch on the kernels' threads; sums in pieces of a row of pixels."""
    with on_threads(native.threads()):
        values = attention(x.values.permute(2, 0, 1).unsqueeze(0).to(attention.to_q.weight.dtype))
    values = values[0].permute(1, 2, 0).float().contiguous()
    return Pixels(values, torch.stack((values.sum(dim=1), values.square().sum(dim=1)), dim=1))


def unfit(decoder: Decoder) -> str | None:
    """Why the kernels do not take a decoder's widths, or None."""
    convolutions = [module for module in decoder.modules() if isinstance(module, nn.Conv2d)]
    widths = {one.in_channels for one in convolutions} | {one.out_channels for one in convolutions[:-1]}
    return f"widths are multiples of {PANEL} there" if any(width % PANEL for width in widths) else None


def nativize_decoder(decoder: Decoder, kind: Kind) -> None:
    """Give a loaded decoder the native forward with products of a kind; parameters stay."""
    made: dict[str, nn.Module] = {}
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Conv2d):
            if name.endswith("conv_shortcut"):
                one: nn.Module = Shortcut(module)
            else:
                group = NEIGHBOURS if module is decoder.conv_out and len(decoder.up_blocks) > 2 else 1
                one = Convolution(module, kind, twice="upsamplers" in name, group=group)
            made[name.replace(".", ":")] = one
    decoder.native = nn.ModuleDict(made)
    decoder.__class__ = NativeDecoder


def values(decoder: Decoder) -> int:
    """Numbers in the packed weights, about."""
    total = 0
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Conv2d):
            values = module.weight.numel() // module.out_channels * round_up(module.out_channels)
            total += values * 16 // 9 if "upsamplers" in name else values * 2
    return total
