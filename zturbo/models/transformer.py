"""The Z-Image S3-DiT: one stream of image and caption tokens, modulated by the timestep.

Parameter names are the checkpoint's, except that q, k, v and w1, w3 are one matrix each (`attention.to_qkv`,
`feed_forward.w13`), because two wide products beat five narrow ones; `weights/names.py` has the table.

What does not depend on the step is computed once by the caller: `embed_caption` per prompt, `modulation` per
schedule, `rope` per size. The pad slots that round captions and images up to 32 are part of the model (learned
registers) and are attended. All images of one call have one size and one padded caption length, so there is no mask
anywhere.

Sources: Z-Image (arXiv 2511.22699), Tongyi-MAI/Z-Image, diffusers' ZImageTransformer2DModel.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zturbo.models.attention import Attend, rotate, round_up, sdpa, unified_rope
from zturbo.models.configs import TransformerConfig

TIMESTEP_FREQUENCIES = 256
TIMESTEP_HIDDEN = 1024
QK_NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Modulation:
    """Everything the timestep decides, with the norms' weights folded in.

    blocks: (modulated blocks, T, 4, dim), noise refiner first: attention_norm1 * (1 + scale),
        attention_norm2 * tanh(gate), ffn_norm1 * (1 + scale), ffn_norm2 * tanh(gate).
    final: (T, dim): 1 + scale of the last norm.
    T is 1 (one timestep for the whole batch) or the batch size.
    """

    blocks: Tensor
    final: Tensor

    def __getitem__(self, index: int | slice) -> "Modulation":
        """The modulation of one timestep (T = 1) or of a range of them."""
        span = slice(index, index + 1) if isinstance(index, int) else index
        return Modulation(self.blocks[:, span], self.final[span])


def timestep_embedding(timesteps: Tensor, scale: float) -> Tensor:
    """Sinusoids of the model's time: (T,) in [0, 1] -> (T, 256) fp32, cosines first (Nichol and Dhariwal 2021)."""
    half = TIMESTEP_FREQUENCIES // 2
    frequencies = torch.exp(
        -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = (timesteps.float() * scale)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B,C,H,W) -> (B, H/p * W/p, p*p*C), row-major tokens, channel fastest inside a token."""
    batch, channels, height, width = latents.shape
    grid = latents.view(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(tokens: Tensor, patch: int, rows: int, columns: int) -> Tensor:
    """The inverse of `patchify`: (B, rows * columns, p*p*C) -> (B, C, rows * p, columns * p)."""
    batch = tokens.shape[0]
    grid = tokens.view(batch, rows, columns, patch, patch, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)


def scaled_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMSNorm of (B,S,dim) times a vector for all or one for each (1 or B, dim): the same roundings in both forms."""
    return F.rms_norm(x, (x.shape[-1],), None, eps) * scale.unsqueeze(1)


class Attention(nn.Module):
    """Full attention over all slots with normed, rotated queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q = nn.RMSNorm(dim // heads, eps=QK_NORM_EPS)
        self.norm_k = nn.RMSNorm(dim // heads, eps=QK_NORM_EPS)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])
        self.attend: Attend = sdpa

    def forward(self, x: Tensor, rope: Tensor, rows: int) -> Tensor:
        """(B,S,dim) -> (B,rows,dim): only the first `rows` slots ask, all of them answer."""
        query, key, value = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (B,S,heads,D) each
        query = rotate(self.norm_q(query[:, :rows]), rope[..., :rows, :, :])
        key = rotate(self.norm_k(key), rope)
        mixed = self.attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x).

    `hidden_scale` multiplies the hidden values: ffn_norm2 cancels any scale, and fp16 needs a small one, because
    the real weights reach 3.4e5 there (docs/concepts/numerics.md).
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w13 = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.hidden_scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w13(x).chunk(2, dim=-1)
        if self.hidden_scale != 1.0:
            value = value * self.hidden_scale  # before the product, which is what overflows
        return self.w2(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and feed-forward, each between two norms; modulated by the timestep or (context refiner) not at all."""

    def __init__(self, config: TransformerConfig, *, modulated: bool) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attention = Attention(config.dim, config.n_heads)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)
        self.attention_norm1 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm1 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention_norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        if modulated:
            self.adaLN_modulation = nn.ModuleList([nn.Linear(config.modulation_dim, 4 * config.dim)])

    def norm_weights(self) -> Tensor:
        """(4, dim), in the order of `Modulation.blocks`."""
        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        return torch.stack([norm.weight for norm in norms])

    def modulation(self, time: Tensor) -> Tensor:
        """(T, modulation_dim) -> (T, 4, dim) with the norms' weights folded in, rounded once."""
        scale_attention, gate_attention, scale_ffn, gate_ffn = self.adaLN_modulation[0](time).float().chunk(4, dim=-1)
        factors = (1 + scale_attention, gate_attention.tanh(), 1 + scale_ffn, gate_ffn.tanh())
        weights = self.norm_weights()
        return (torch.stack(factors, dim=1) * weights.float()).to(weights.dtype)

    def forward(self, x: Tensor, rope: Tensor, modulation: Tensor, rows: int | None = None) -> Tensor:
        """(B,S,dim) -> (B,rows,dim); `modulation` is (1 or B, 4, dim), `rows` defaults to all."""
        rows = x.shape[1] if rows is None else rows
        scale_attention, gate_attention, scale_ffn, gate_ffn = modulation.unbind(1)
        mixed = self.attention(scaled_norm(x, scale_attention, self.eps), rope, rows)
        x = x[:, :rows] + scaled_norm(mixed, gate_attention, self.eps)
        hidden_eps = self.eps * self.feed_forward.hidden_scale**2
        return x + scaled_norm(self.feed_forward(scaled_norm(x, scale_ffn, self.eps)), gate_ffn, hidden_eps)


class TimestepEmbedder(nn.Module):
    """Sinusoids through a two-layer network: (T,) -> (T, modulation_dim)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.scale = config.t_scale
        self.mlp = nn.Sequential(
            nn.Linear(TIMESTEP_FREQUENCIES, TIMESTEP_HIDDEN),
            nn.SiLU(),
            nn.Linear(TIMESTEP_HIDDEN, config.modulation_dim),
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(timesteps, self.scale).to(next(self.mlp.parameters()).dtype))


class FinalLayer(nn.Module):
    """LayerNorm without weights, scaled by the timestep, then a projection to the patch."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, config.patch_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.modulation_dim, config.dim))

    def modulation(self, time: Tensor) -> Tensor:
        """(T, modulation_dim) -> (T, dim)."""
        scale = self.adaLN_modulation(time)
        return (1 + scale.float()).to(scale.dtype)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """(B,N,dim), (1 or B,dim) -> (B,N,patch_dim)."""
        return self.linear(F.layer_norm(x, (x.shape[-1],), eps=FINAL_NORM_EPS) * scale.unsqueeze(1))


class ZImageTransformer(nn.Module):
    """Predicts the velocity of the latents towards the data, for any config of the family."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.key = f"{config.patch_size}-1"  # the checkpoint's name of its only patch size
        self.all_x_embedder = nn.ModuleDict({self.key: nn.Linear(config.patch_dim, config.dim)})
        self.all_final_layer = nn.ModuleDict({self.key: FinalLayer(config)})
        refiners = range(config.n_refiner_layers)
        self.noise_refiner = nn.ModuleList([Block(config, modulated=True) for _ in refiners])
        self.context_refiner = nn.ModuleList([Block(config, modulated=False) for _ in refiners])
        self.t_embedder = TimestepEmbedder(config)
        self.cap_embedder = nn.Sequential(
            nn.RMSNorm(config.cap_feat_dim, eps=config.norm_eps), nn.Linear(config.cap_feat_dim, config.dim)
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, config.dim))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, config.dim))
        self.layers = nn.ModuleList([Block(config, modulated=True) for _ in range(config.n_layers)])

    def embed_caption(self, prompt_embeds: Tensor) -> Tensor:
        """Project, pad with the learned pad token and refine a caption; it does not depend on the step.

        Args:
            prompt_embeds: (B, L, cap_feat_dim), the text encoder's output for L real tokens,
                1 <= L <= config.max_caption_tokens.

        Returns:
            (B, Lp, dim) with Lp the next multiple of 32.
        """
        batch, length, _ = prompt_embeds.shape
        slots = round_up(length)
        pads = self.cap_pad_token.expand(batch, slots - length, -1)
        x = torch.cat((self.cap_embedder(prompt_embeds), pads), dim=1)
        rope = self.rope(0, 0, slots, x.device)
        for block in cast(Iterable[Block], self.context_refiner):
            x = block(x, rope, block.norm_weights().unsqueeze(0))
        return x

    def modulation(self, timesteps: Tensor) -> Modulation:
        """What T timesteps decide, for `forward`: (T,) fp32 in [0, 1], 0 = noise, 1 = clean (1 - sigma)."""
        time = self.t_embedder(timesteps)
        modulated = cast(Iterable[Block], (*self.noise_refiner, *self.layers))
        final = cast(FinalLayer, self.all_final_layer[self.key])
        return Modulation(torch.stack([block.modulation(time) for block in modulated]), final.modulation(time))

    def rope(self, rows: int, columns: int, caption_slots: int, device: torch.device) -> Tensor:
        """Rotations of all slots, for `forward`: a grid of image tokens and a caption with its padding, (S, D/2, 2)."""
        config = self.config
        return unified_rope(rows, columns, caption_slots, config.axes_dims, config.rope_theta, device)

    def forward(self, latents: Tensor, caption: Tensor, modulation: Modulation, rope: Tensor | None = None) -> Tensor:
        """One evaluation of the network.

        Args:
            latents: (B, C, H, W) in the transformer's dtype, H and W multiples of the patch.
            caption: (B, Lp, dim) of `embed_caption`.
            modulation: of one timestep for all, or of B timesteps.
            rope: of `rope` for these sizes; left out, it is looked up.

        Returns:
            (B, C, H, W) velocity towards the data: x <- x + (sigma - sigma_next) * velocity.
        """
        patch = self.config.patch_size
        rows, columns = latents.shape[2] // patch, latents.shape[3] // patch
        rope = self.rope(rows, columns, caption.shape[1], latents.device) if rope is None else rope
        return unpatchify(self.predict(patchify(latents, patch), caption, modulation, rope), patch, rows, columns)

    def predict(self, patches: Tensor, caption: Tensor, modulation: Modulation, rope: Tensor) -> Tensor:
        """The evaluation itself, on image tokens: all of a picture's, or those that a trainer kept.

        Args:
            patches: (B, N, patch_dim) of `patchify`.
            caption, modulation: as in `forward`.
            rope: (S, D/2, 2) of N tokens with their padding up to 32, then the caption's slots; or one for each,
                (B, S, D/2, 2).

        Returns:
            (B, N, patch_dim) velocity.
        """
        tokens, slots = patches.shape[1], round_up(patches.shape[1])
        x = self.all_x_embedder[self.key](patches)
        if slots > tokens:
            x = torch.cat((x, self.x_pad_token.expand(x.shape[0], slots - tokens, -1)), dim=1)
        refiners = len(self.noise_refiner)
        for block, vectors in zip(self.noise_refiner, modulation.blocks[:refiners], strict=True):
            x = block(x, rope[..., :slots, :, :], vectors)
        x = torch.cat((x, caption), dim=1)
        for block, vectors in zip(self.layers[:-1], modulation.blocks[refiners:-1], strict=True):
            x = block(x, rope, vectors)
        x = self.layers[-1](x, rope, modulation.blocks[-1], rows=tokens)  # nobody reads the other rows
        return self.all_final_layer[self.key](x, modulation.final)
