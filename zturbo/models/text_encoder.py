"""Qwen3, the causal language model whose inner states condition the transformer.

Same arithmetic and parameter names as transformers' `Qwen3ForCausalLM` with tied embeddings, except that q, k, v and
gate, up are one matrix each (`self_attn.qkv_proj`, `mlp.gate_up_proj`; `weights/names.py` has the table).
`encode` stops after the layer whose output Z-Image reads; `forward` with a `KVCache` writes text with the same weights.

Source: Qwen3 Technical Report (arXiv 2505.09388).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zturbo.models.configs import TextEncoderConfig


class KVCache:
    """Keys and values of the tokens read so far, in buffers of fixed length.

    Args:
        config: the model's shape.
        batch, length: the most sequences and tokens it can hold.
    """

    def __init__(
        self, config: TextEncoderConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, length, config.head_dim)
        self.states = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, kv_heads, n, D) keys and values of one layer; returns all of them so far."""
        end = self.length + key.shape[2]
        states = self.states[layer]
        states[0, :, :, self.length : end] = key
        states[1, :, :, self.length : end] = value
        return states[0, :, :, :end], states[1, :, :, :end]


def rope_angles(config: TextEncoderConfig, first: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, (count, head_dim) fp32 each, of positions first .. first + count - 1."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponent)
    angles = torch.outer(torch.arange(first, first + count, device=device).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i with channel i + D/2: (B,heads,S,D) with (S,D) tables."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class SelfAttention(nn.Module):
    """Causal grouped-query attention with normed, rotated queries and keys."""

    def __init__(self, config: TextEncoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        heads = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B,all heads,S,D)
        query, key, value = heads.split(self.heads, dim=1)
        query = rotate_halves(self.q_norm(query), cos, sin)
        key = rotate_halves(self.k_norm(key), cos, sin)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        count, seen = query.shape[2], key.shape[2]
        assert count in (1, seen), "a cache is filled by one prompt, then token by token"
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=count > 1, enable_gqa=self.heads[0] != self.heads[1]
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each after a norm and with a residual."""

    def __init__(self, config: TextEncoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, layers and last norm; in the files all its names start with `model.`."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # a normal_ on the meta device imports torch's compiler, which takes 2 s
            nn.init.normal_(weight)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList([DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, input_ids: Tensor, layers: int, cache: KVCache | None = None) -> Tensor:
        """(B,S) token ids -> (B,S,hidden) raw output of the first `layers` layers."""
        x = self.embed_tokens(input_ids)
        first = 0 if cache is None else cache.length
        cos, sin = (table.to(x.dtype) for table in rope_angles(self.config, first, input_ids.shape[1], x.device))
        for layer in self.layers[:layers]:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return x


class Qwen3(nn.Module):
    """The causal language model with tied embeddings."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)

    def encode(self, input_ids: Tensor) -> Tensor:
        """What conditions the picture: the raw output of the second to last layer, before any final norm.

        Args:
            input_ids: (B, L) without padding: causal attention makes unpadded rows equal to right-padded ones.

        Returns:
            (B, L, hidden_size), transformers' `hidden_states[-2]`.
        """
        return self.model(input_ids, self.config.num_hidden_layers - 1)

    def forward(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Next-token logits: (B, S) -> (B, S, vocab). With a cache, the ids continue what it holds."""
        return self._logits(self.model(input_ids, self.config.num_hidden_layers, cache))

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits of the one token that follows: (B, S) -> (B, vocab), where the embedding lies."""
        return self._logits(self.model(input_ids, self.config.num_hidden_layers, cache)[:, -1])

    def _logits(self, x: Tensor) -> Tensor:
        """(..., hidden) of the last layer -> (..., vocab); layers may compute elsewhere than norm and embedding lie."""
        x = self.model.norm(x.to(self.model.norm.weight.device))
        return F.linear(x, self.model.embed_tokens.weight)
