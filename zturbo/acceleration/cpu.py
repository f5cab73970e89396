"""What the passes for a CPU do, and when they are used: blocks and decoder in C (`kernels.c`, `native*.py`).

`levels` lists them. Each `..._unfit` says in words why a pipeline does without, or None: the kernels are not there, the
model has widths that they do not take, or their trial on the model's own first block and ends fails.
"""

import copy
import ctypes
from typing import cast

import torch
from torch import Tensor, nn

from zturbo.acceleration import native, native_decoder
from zturbo.acceleration.native import (
    BlockStruct,
    ForwardStruct,
    Kind,
    Packed,
    Unavailable,
    interleave,
    pack,
    pad_heads,
)
from zturbo.acceleration.quantize import QuantizedLinear
from zturbo.acceleration.verdicts import judged_once
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import LARGEST_PICTURE, values_per_pixel
from zturbo.engine.sampling import guessed_steps
from zturbo.models.attention import round_up
from zturbo.models.transformer import (
    FINAL_NORM_EPS,
    QK_NORM_EPS,
    Block,
    FinalLayer,
    Modulation,
    ZImageTransformer,
)

TRIAL_LIMITS: dict[Kind, float] = {"fp32": 1e-4, "bf16": 2e-2, "int16": 5e-3, "int8": 4e-2}
"""Relative error of a network of one block, or of one picture, with products of a kind against the eager one."""
TRIAL_SLOTS = (3, 7, 32)
"""Rows and columns of tokens, which are filled up to 32, and caption slots of the transformer's trial."""
TRIAL_LATENTS = (6, 7)
"""Rows and columns of the decoder's trial."""


class BlockWeights(nn.Module):
    """A block's products in the kernels' layout, the down projection (w2) of a kind of its own; head norms in fp32."""

    norm_q: Tensor
    norm_k: Tensor

    def __init__(self, block: Block, kind: Kind, down: Kind) -> None:
        super().__init__()
        attention, feed_forward = block.attention, block.feed_forward
        heads = attention.heads
        self.qkv = pack(pad_heads(attention.to_qkv.weight, 3 * heads, 0), kind)
        self.to_out = pack(pad_heads(attention.to_out[0].get_parameter("weight"), heads, 1), kind)
        self.w13 = pack(interleave(feed_forward.w13.weight), kind)
        self.w2 = pack(feed_forward.w2.weight, down)
        self.register_buffer("norm_q", attention.norm_q.weight.float(), persistent=False)
        self.register_buffer("norm_k", attention.norm_k.weight.float(), persistent=False)

    def structs(self) -> tuple[native.WeightsStruct, ...]:
        """The four products' weights, in the order of `BlockStruct`."""
        return tuple(one.struct() for one in cast(tuple[Packed, ...], (self.qkv, self.to_out, self.w13, self.w2)))


class NativeBlock(Block):
    """A `Block` whose forward is one call of C."""

    native: BlockWeights

    def struct(self) -> BlockStruct:
        """What the kernels are handed of it; a picture's own (`x`, `rope`, ..., `threads`) is left to be set."""
        weights, attention, scale = self.native, self.attention, self.feed_forward.hidden_scale
        dim, heads = attention.to_qkv.in_features, attention.heads
        return BlockStruct(
            None, None, None, weights.norm_q.data_ptr(), weights.norm_k.data_ptr(), None,
            *weights.structs(), self.eps, QK_NORM_EPS, self.eps * scale**2, scale,
            0, 0, dim, heads, dim // heads, 0,
        )  # fmt: skip

    def forward(self, x: Tensor, rope: Tensor, modulation: Tensor, rows: int | None = None) -> Tensor:
        """(B,S,dim) -> (B,rows,dim); `modulation` is (1 or B, 4, dim), `rows` defaults to all.

        Raises:
            MemoryError: there is none for the slots.
        """
        batch, slots, dim = x.shape
        rows = slots if rows is None else rows
        x_in, modulation, rope = x.float().contiguous(), modulation.float().contiguous(), rope.contiguous()
        out, work = torch.empty(batch, rows, dim), self.struct()
        for picture in range(batch):
            _hand(work, _of(rope, picture, 3), _of(modulation, picture, 2))
            work.x, work.out, work.slots, work.rows = x_in[picture].data_ptr(), out[picture].data_ptr(), slots, rows
            if native.library().zt_block(ctypes.byref(work)):
                raise MemoryError(f"no memory for a block of {slots} slots")
        return out.to(x.dtype)


class Ends(nn.Module):
    """The first and the last product of the network in the kernels' layout, always in fp32."""

    bias: Tensor
    last_bias: Tensor
    pad: Tensor

    def __init__(self, transformer: ZImageTransformer) -> None:
        super().__init__()
        first = cast(nn.Linear, transformer.all_x_embedder[transformer.key])
        last = cast(FinalLayer, transformer.all_final_layer[transformer.key]).linear
        self.first, self.last = pack(first.weight, "fp32"), pack(last.weight, "fp32")
        for name, values in (("bias", first.bias), ("last_bias", last.bias), ("pad", transformer.x_pad_token)):
            self.register_buffer(name, values.float().clone(), persistent=False)


class NativeTransformer(ZImageTransformer):
    """A transformer whose evaluation is one call of C for each picture."""

    native: Ends
    structs: bytes | None = None
    """The `BlockStruct`s of all blocks, noise refiner first; made anew, they would cost 0.2 ms of each forward."""

    def __getstate__(self) -> dict[str, object]:
        """A copy has addresses of its own."""
        return {**self.__dict__, "structs": None}

    def forward(self, latents: Tensor, caption: Tensor, modulation: Modulation, rope: Tensor | None = None) -> Tensor:
        """As in `ZImageTransformer`."""
        with native.only_kernels():
            return super().forward(latents, caption, modulation, rope)

    def predict(self, patches: Tensor, caption: Tensor, modulation: Modulation, rope: Tensor) -> Tensor:
        """(B,N,patch_dim), (B,Lp,dim) -> (B,N,patch_dim), as in `ZImageTransformer`.

        Raises:
            MemoryError: there is none for the slots.
        """
        (batch, tokens, patch), (_, captions, dim) = patches.shape, caption.shape
        x, caption, rope = patches.float().contiguous(), caption.float().contiguous(), rope.contiguous()
        vectors, scale = modulation.blocks.float().contiguous(), modulation.final.float().contiguous()
        blocks, ends, out = self._blocks(), self.native, torch.empty(batch, tokens, patch)
        for picture in range(batch):
            for block, one in zip(blocks, vectors, strict=True):
                _hand(block, _of(rope, picture, 3), _of(one, picture, 2))
            work = ForwardStruct(
                x[picture].data_ptr(), ends.pad.data_ptr(), _of(caption, picture, 2).data_ptr(),
                _of(scale, picture, 1).data_ptr(), ends.bias.data_ptr(), ends.last_bias.data_ptr(),
                out[picture].data_ptr(), blocks, ends.first.struct(), ends.last.struct(), FINAL_NORM_EPS, tokens, patch,
                round_up(tokens), captions, dim, len(self.noise_refiner), len(self.layers), native.threads(),
            )  # fmt: skip
            if native.library().zt_forward(ctypes.byref(work)):
                raise MemoryError(f"no memory for {round_up(tokens) + captions} slots")
        return out.to(patches.dtype)

    def _blocks(self) -> "ctypes.Array[BlockStruct]":
        """`structs` for one forward, in memory of its own."""
        blocks = cast(list[NativeBlock], [*self.noise_refiner, *self.layers])
        every = BlockStruct * len(blocks)
        if self.structs is None:
            self.structs = bytes(every(*(block.struct() for block in blocks)))
        return every.from_buffer_copy(self.structs)


def _hand(block: BlockStruct, rope: Tensor, modulation: Tensor) -> None:
    """Set a picture's rotations and modulation, and the threads of this moment."""
    block.rope, block.modulation, block.threads = rope.data_ptr(), modulation.data_ptr(), native.threads()


def _of(values: Tensor, picture: int, axes: int) -> Tensor:
    """What belongs to a picture: values of so many axes are for all, one axis more is for each or of one for all."""
    return values if values.ndim == axes else values[picture if values.shape[0] > 1 else 0]


def nativize(transformer: ZImageTransformer, kind: Kind, down: Kind | None = None) -> None:
    """Give a loaded transformer and its blocks the native forward; parameters stay.

    Args:
        transformer: eager.
        kind: of the products' operands.
        down: of those of the down projections; left out, it is `kind`.
    """
    for module in list(transformer.modules()):
        if isinstance(module, Block):
            _nativize(module, kind, down or kind)
    transformer.native = Ends(transformer)
    transformer.__class__ = NativeTransformer


def _nativize(block: Block, kind: Kind, down: Kind) -> None:
    block.native = BlockWeights(block, kind, down)
    block.__class__ = NativeBlock


def exact_kind(dtype: torch.dtype) -> Kind:
    """Operands that lose nothing: bf16 where the weights are in it and the processor multiplies it."""
    return "bf16" if dtype == torch.bfloat16 and "avx512_bf16" in native.features() else "fp32"


def integer_kind() -> Kind:
    """The fastest integers: 8 bits where one instruction multiplies four of them, 12 bits in pairs elsewhere."""
    return "int8" if "avx512_vnni" in native.features() else "int16"


def down_kind(dtype: torch.dtype) -> Kind:
    """Operands of the down projections among integers: exact ones beside 8 bits.

    The published model's hidden values reach 6.6e4 in few channels of few tokens; a row's scale follows them, and eight
    bits leave nothing of its other channels. Twelve do (docs/log.md).
    """
    return exact_kind(dtype) if integer_kind() == "int8" else integer_kind()


@judged_once
def native_unfit(pipeline: Pipeline) -> str | None:
    """Why blocks are not computed in C."""
    config = pipeline.transformer.config
    if any(isinstance(module, QuantizedLinear) for module in pipeline.transformer.modules()):
        return "the weights are in 8 bits already"
    if config.dim % native.PANEL or config.head_dim % 2:
        return f"widths are multiples of {native.PANEL} there"
    try:
        native.library()
    except Unavailable as reason:
        return str(reason)
    return transformer_trial(pipeline, exact_kind(pipeline.dtype))


@judged_once
def decoder_unfit(pipeline: Pipeline) -> str | None:
    """Why pictures are not decoded in C."""
    try:
        native.library()
    except Unavailable as reason:
        return str(reason)
    return native_decoder.unfit(pipeline.vae.decoder) or decoder_trial(pipeline, exact_kind(pipeline.vae_dtype))


@judged_once
def integers_unfit(pipeline: Pipeline) -> str | None:
    """Why the blocks' products are not done in integers."""
    return native_unfit(pipeline) or transformer_trial(pipeline, integer_kind(), down_kind(pipeline.dtype))


@judged_once
def integer_down_unfit(pipeline: Pipeline) -> str | None:
    """Why the down projections are not done in 8 bits as well."""
    if (kind := integer_kind()) != "int8":
        return "they are in 12 bits, as the other products"
    return native_unfit(pipeline) or transformer_trial(pipeline, kind)


@judged_once
def integer_decoder_unfit(pipeline: Pipeline) -> str | None:
    """Why the decoder's products are not done in integers."""
    return decoder_unfit(pipeline) or decoder_trial(pipeline, integer_kind())


@torch.inference_mode()
def transformer_trial(pipeline: Pipeline, kind: Kind, down: Kind | None = None) -> str | None:
    """Why the kernels cannot be trusted here, or None: the model with its first block only, native beside eager."""
    config = pipeline.transformer.config
    rows, columns, captions = TRIAL_SLOTS
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(1, rows * columns, config.patch_dim, generator=generator).to(pipeline.dtype)
    caption = torch.randn(1, captions, config.dim, generator=generator).to(pipeline.dtype)
    rope = pipeline.transformer.rope(rows, columns, captions, pipeline.device)
    whole = pipeline.transformer.modulation(torch.tensor([0.5]))
    modulation = Modulation(whole.blocks[-1:], whole.final)
    eager, trial = shortened(pipeline.transformer), shortened(pipeline.transformer)
    nativize(trial, kind, down)
    found, expected = (one.predict(patches, caption, modulation, rope) for one in (trial, eager))
    return _judge(found, expected, kind, pipeline.dtype)


def shortened(transformer: ZImageTransformer) -> ZImageTransformer:
    """A transformer with the first of its layers only and no refiners, on the same weights."""
    block = copy.copy(transformer.layers[0])
    block._modules = dict(block._modules)
    short = copy.copy(transformer)
    short._modules = dict(transformer._modules)
    short.layers, short.noise_refiner, short.context_refiner = nn.ModuleList([block]), nn.ModuleList(), nn.ModuleList()
    return short


@torch.inference_mode()
def decoder_trial(pipeline: Pipeline, kind: Kind) -> str | None:
    """Why the decoder cannot be trusted here, or None: a small picture of noise, native beside eager."""
    decoder = pipeline.vae.decoder
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, pipeline.vae.config.latent_channels, *TRIAL_LATENTS, generator=generator)
    latents = latents.to(pipeline.vae_dtype)
    trial = copy.copy(decoder)  # the same weights
    trial._modules = dict(decoder._modules)
    native_decoder.nativize_decoder(trial, kind)
    return _judge(trial(latents), decoder(latents), kind, pipeline.vae_dtype)


def _judge(found: Tensor, expected: Tensor, kind: Kind, dtype: torch.dtype) -> str | None:
    off = float((found.float() - expected.float()).norm() / expected.float().norm())
    limit = max(TRIAL_LIMITS[kind], 0.0 if dtype == torch.float32 else TRIAL_LIMITS["bf16"])
    return None if off < limit else f"their result is off by {off:.1g}"


def native_bytes(pipeline: Pipeline) -> int:
    """Memory of the packed weights of all blocks, beside the ones of the working dtype."""
    kind = exact_kind(pipeline.dtype)
    return _packed_bytes(pipeline, kind, kind)


def decoder_bytes(pipeline: Pipeline) -> int:
    """The same of the decoder, and what decoding takes on all lanes beyond the plan, which counts the VAE's dtype."""
    size = native.STORAGE[exact_kind(pipeline.vae_dtype)].itemsize
    return native_decoder.values(pipeline.vae.decoder) * size + pipeline.lanes.count * _beyond_plan(pipeline)


def _beyond_plan(pipeline: Pipeline) -> int:
    """Bytes of the largest decoding's working memory that the plan does not count."""
    factor = pipeline.vae.config.factor
    latents = pipeline.tile**2 if pipeline.tile else LARGEST_PICTURE // factor**2
    planned = latents * factor**2 * values_per_pixel(pipeline.vae.config) * pipeline.vae_dtype.itemsize
    return max(0, native_decoder.working_bytes(pipeline.vae.decoder, latents) - planned)


def integer_bytes(pipeline: Pipeline) -> int:
    """The same of the blocks in integers."""
    return _packed_bytes(pipeline, integer_kind(), down_kind(pipeline.dtype))


def integer_down_bytes(pipeline: Pipeline) -> int:
    """The same of the down projections in 8 bits."""
    return _down_values(pipeline)


def integer_decoder_bytes(pipeline: Pipeline) -> int:
    """The same of the decoder in integers, which works in the memory of the exact one."""
    return native_decoder.values(pipeline.vae.decoder) * native.STORAGE[integer_kind()].itemsize


def _packed_bytes(pipeline: Pipeline, kind: Kind, down: Kind) -> int:
    """Of the blocks' products of a kind, their down projections of another, and the first and the last product."""
    config, down_values = pipeline.transformer.config, _down_values(pipeline)
    others = (_block_values(pipeline) - down_values) * native.STORAGE[kind].itemsize
    ends = 2 * 4 * config.dim * native.round_up(config.patch_dim)
    return others + down_values * native.STORAGE[down].itemsize + ends


def _block_values(pipeline: Pipeline) -> int:
    config = pipeline.transformer.config
    heads = 4 * config.dim * config.n_heads * native.round_up(config.head_dim)
    return _blocks(pipeline) * heads + 3 * _down_values(pipeline)


def _down_values(pipeline: Pipeline) -> int:
    config = pipeline.transformer.config
    return _blocks(pipeline) * config.dim * native.round_up(config.hidden_dim)


def _blocks(pipeline: Pipeline) -> int:
    config = pipeline.transformer.config
    return config.n_layers + 2 * config.n_refiner_layers


def to_native(pipeline: Pipeline) -> None:
    """Give a fork's blocks the native forward, losing nothing."""
    nativize(pipeline.transformer, exact_kind(pipeline.dtype))


def to_native_decoder(pipeline: Pipeline) -> None:
    """Give a fork the native decoder, losing nothing."""
    native_decoder.nativize_decoder(pipeline.vae.decoder, exact_kind(pipeline.vae_dtype))


def to_integers(pipeline: Pipeline) -> None:
    """Give a fork's blocks integer products."""
    nativize(pipeline.transformer, integer_kind(), down_kind(pipeline.dtype))


def to_integer_down(pipeline: Pipeline) -> None:
    """Give a fork's blocks down projections in 8 bits."""
    for module in pipeline.transformer.modules():
        if isinstance(module, NativeBlock):
            module.native.w2 = pack(module.feed_forward.w2.weight, integer_kind())
    cast(NativeTransformer, pipeline.transformer).structs = None


def to_integer_decoder(pipeline: Pipeline) -> None:
    """Give a fork's decoder integer products."""
    native_decoder.nativize_decoder(pipeline.vae.decoder, integer_kind())


def guess_unfit(pipeline: Pipeline) -> str | None:
    """Why no forward is replaced by a guess: it is a part of the levels of native kernels."""
    return integers_unfit(pipeline)


def guess_forwards(pipeline: Pipeline) -> None:
    """Have a fork extrapolate some of its forwards."""
    pipeline.guessed = guessed_steps
