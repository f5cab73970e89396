"""The one table of names: for each component and layout, checkpoint name -> place in our parameters.

Everything is derived from the config, so it holds for any member of the family. Three of our parameters
are fused and therefore filled from row blocks: the transformer's `attention.to_qkv` (q, k, v) and
`feed_forward.w13` (w1, w3), the text encoder's `self_attn.qkv_proj` and `mlp.gate_up_proj`.
A name is looked up whole; nothing is renamed by substring.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig

Shape = tuple[int, ...]

TransformerLayout = Literal["diffusers", "comfy"]
TextEncoderLayout = Literal["transformers", "transformers base", "llama.cpp"]
"""`transformers` is how Qwen3ForCausalLM names its tensors, `transformers base` how the Qwen3Model inside it does."""

VaeLayout = Literal["diffusers", "flux"]

TIMESTEP_FREQUENCIES, TIMESTEP_HIDDEN = 256, 1024
"""Width of the timestep sinusoid and of the MLP behind it: constants of the reference's TimestepEmbedder."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one checkpoint tensor goes: rows `first_row` .. `first_row + shape[0]` of our `parameter`.

    `shape` is the tensor's own shape after axes of size 1 were added or dropped as the parameter wants them.
    """

    parameter: str
    first_row: int
    shape: Shape

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + self.shape[0])


@dataclass(frozen=True, slots=True)
class NameTable:
    """All names of one component in one layout, as they stand in the file (prefix included)."""

    layout: str
    placements: Mapping[str, Placement]
    ignored: frozenset[str] = frozenset()
    """Names that may be present and carry nothing the model uses."""

    def prefixed(self, prefix: str) -> "NameTable":
        placements = {prefix + name: placement for name, placement in self.placements.items()}
        return NameTable(self.layout, placements, frozenset(prefix + name for name in self.ignored))


@dataclass(frozen=True, slots=True)
class Found:
    """The layout of a component inside a file, and the prefix of its names there."""

    layout: str
    prefix: str


TRANSFORMER_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")
TEXT_ENCODER_PREFIXES = ("", "text_encoders.qwen3_4b.transformer.")
VAE_PREFIXES = ("", "vae.", "first_stage_model.")

OUTSIDE = frozenset({"text_encoders.qwen3_4b.logit_scale"})
"""Names of whole ComfyUI checkpoints that belong to no network: a scalar of its CLIP wrapper."""

# One name that every file of the layout has and no file of another layout can have.
_TRANSFORMER_MARKS = {"layers.0.attention.to_q.weight": "diffusers", "layers.0.attention.qkv.weight": "comfy"}
_TEXT_ENCODER_MARKS = {
    "model.layers.0.self_attn.q_proj.weight": "transformers",
    "layers.0.self_attn.q_proj.weight": "transformers base",
    "blk.0.attn_q_norm.weight": "llama.cpp",
}
_VAE_MARKS = {
    "decoder.up_blocks.0.resnets.0.conv1.weight": "diffusers",
    "decoder.up.0.block.0.conv1.weight": "flux",
}


def _find(names: Collection[str], marks: Mapping[str, str], prefixes: Iterable[str]) -> list[Found]:
    return [Found(layout, p) for p in prefixes for mark, layout in marks.items() if p + mark in names]


def find_transformer(names: Collection[str]) -> list[Found]:
    """Layouts of a Z-Image transformer present in a file; one is right, more are ambiguous."""
    return _find(names, _TRANSFORMER_MARKS, TRANSFORMER_PREFIXES)


def find_text_encoder(names: Collection[str]) -> list[Found]:
    return _find(names, _TEXT_ENCODER_MARKS, TEXT_ENCODER_PREFIXES)


def find_vae(names: Collection[str]) -> list[Found]:
    return _find(names, _VAE_MARKS, VAE_PREFIXES)


# --- transformer ---------------------------------------------------------------------------------------------

_COMFY_NAMES = {
    "attention.to_out.0.weight": "attention.out.weight",
    "attention.norm_q.weight": "attention.q_norm.weight",
    "attention.norm_k.weight": "attention.k_norm.weight",
}
"""Names inside a block that the two layouts spell differently (diffusers -> Comfy), beside the fused qkv."""


def transformer_blocks(config: TransformerConfig) -> list[str]:
    """Names of all blocks: refiners first, then the main stack."""
    refiners = [f"{kind}_refiner.{i}" for kind in ("noise", "context") for i in range(config.n_refiner_layers)]
    return refiners + [f"layers.{i}" for i in range(config.n_layers)]


def _attention(config: TransformerConfig, layout: TransformerLayout) -> Iterator[tuple[str, Placement]]:
    dim = config.dim
    if layout == "comfy":
        yield "attention.qkv.weight", Placement("attention.to_qkv.weight", 0, (3 * dim, dim))
    else:
        for i, letter in enumerate("qkv"):
            yield f"attention.to_{letter}.weight", Placement("attention.to_qkv.weight", i * dim, (dim, dim))


def _block(config: TransformerConfig, layout: TransformerLayout, modulated: bool) -> Iterator[tuple[str, Placement]]:
    dim, hidden, head = config.dim, config.hidden_dim, config.head_dim
    yield from _attention(config, layout)
    yield "feed_forward.w1.weight", Placement("feed_forward.w13.weight", 0, (hidden, dim))
    yield "feed_forward.w3.weight", Placement("feed_forward.w13.weight", hidden, (hidden, dim))
    shapes: dict[str, Shape] = {
        "attention.to_out.0.weight": (dim, dim),
        "attention.norm_q.weight": (head,),
        "attention.norm_k.weight": (head,),
        "feed_forward.w2.weight": (dim, hidden),
    }
    shapes |= {f"{norm}.weight": (dim,) for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")}
    if modulated:
        shapes["adaLN_modulation.0.weight"] = (4 * dim, config.modulation_dim)
        shapes["adaLN_modulation.0.bias"] = (4 * dim,)
    for name, shape in shapes.items():
        yield (_COMFY_NAMES.get(name, name) if layout == "comfy" else name), Placement(name, 0, shape)


def _transformer_ends(config: TransformerConfig) -> dict[str, Shape]:
    dim, mod = config.dim, config.modulation_dim
    key = f"{config.patch_size}-1"  # diffusers keeps one embedder per (spatial patch, frame patch)
    return {
        "x_pad_token": (1, dim),
        "cap_pad_token": (1, dim),
        f"all_x_embedder.{key}.weight": (dim, config.patch_dim),
        f"all_x_embedder.{key}.bias": (dim,),
        f"all_final_layer.{key}.linear.weight": (config.patch_dim, dim),
        f"all_final_layer.{key}.linear.bias": (config.patch_dim,),
        f"all_final_layer.{key}.adaLN_modulation.1.weight": (dim, mod),
        f"all_final_layer.{key}.adaLN_modulation.1.bias": (dim,),
        "t_embedder.mlp.0.weight": (TIMESTEP_HIDDEN, TIMESTEP_FREQUENCIES),
        "t_embedder.mlp.0.bias": (TIMESTEP_HIDDEN,),
        "t_embedder.mlp.2.weight": (mod, TIMESTEP_HIDDEN),
        "t_embedder.mlp.2.bias": (mod,),
        "cap_embedder.0.weight": (config.cap_feat_dim,),
        "cap_embedder.1.weight": (dim, config.cap_feat_dim),
        "cap_embedder.1.bias": (dim,),
    }


def _comfy_end(name: str, config: TransformerConfig) -> str:
    """`all_x_embedder.2-1.weight` -> `x_embedder.weight`; other names are the same."""
    head, *tail = name.split(".")
    if head in ("all_x_embedder", "all_final_layer"):
        assert tail[0] == f"{config.patch_size}-1"
        return ".".join([head.removeprefix("all_"), *tail[1:]])
    return name


def transformer_names(config: TransformerConfig, layout: TransformerLayout) -> NameTable:
    """521 (diffusers) or 453 (comfy) names for the published 6B."""
    placements: dict[str, Placement] = {}
    for name, shape in _transformer_ends(config).items():
        placements[_comfy_end(name, config) if layout == "comfy" else name] = Placement(name, 0, shape)
    blocks = transformer_blocks(config)
    for block in blocks:
        for name, place in _block(config, layout, modulated=not block.startswith("context_refiner")):
            placements[f"{block}.{name}"] = Placement(f"{block}.{place.parameter}", place.first_row, place.shape)
    # Leftovers of Lumina and of the Comfy converter: the model has neither a final norm nor this bias.
    ignored = {"norm_final.weight"} | {f"{block}.attention.to_out.0.bias" for block in blocks}
    return NameTable(layout, placements, frozenset(ignored))


# --- text encoder --------------------------------------------------------------------------------------------

_LLAMA_CPP_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
}
"""llama.cpp's tensor names for the qwen3 architecture; its converter permutes no rows for this family."""


def _decoder_layer(config: TextEncoderConfig) -> Iterator[tuple[str, Placement]]:
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    yield "self_attn.q_proj", Placement("self_attn.qkv_proj", 0, (query, width))
    yield "self_attn.k_proj", Placement("self_attn.qkv_proj", query, (key, width))
    yield "self_attn.v_proj", Placement("self_attn.qkv_proj", query + key, (key, width))
    yield "mlp.gate_proj", Placement("mlp.gate_up_proj", 0, (inner, width))
    yield "mlp.up_proj", Placement("mlp.gate_up_proj", inner, (inner, width))
    shapes: dict[str, Shape] = {
        "self_attn.o_proj": (width, query),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    yield from ((name, Placement(name, 0, shape)) for name, shape in shapes.items())


def text_encoder_root(layout: TextEncoderLayout) -> str:
    """What a layout of transformers puts before `layers.0` and its neighbours."""
    return "model." if layout == "transformers" else ""


def text_encoder_names(config: TextEncoderConfig, layout: TextEncoderLayout) -> NameTable:
    """398 names for Qwen3-4B. A stored output head is ignored: it repeats the tied embedding."""
    foreign = layout == "llama.cpp"
    root = text_encoder_root(layout)
    ends: dict[str, Shape] = {
        "embed_tokens": (config.vocab_size, config.hidden_size),
        "norm": (config.hidden_size,),
    }
    placements = {
        f"{_LLAMA_CPP_NAMES[name] if foreign else root + name}.weight": Placement(f"model.{name}.weight", 0, shape)
        for name, shape in ends.items()
    }
    for i in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{i}", (f"blk.{i}" if foreign else f"{root}layers.{i}")
        for name, place in _decoder_layer(config):
            parameter = f"{ours}.{place.parameter}.weight"
            their_name = _LLAMA_CPP_NAMES[name] if foreign else name
            placements[f"{theirs}.{their_name}.weight"] = Placement(parameter, place.first_row, place.shape)
    return NameTable(layout, placements, frozenset({"output.weight" if foreign else "lm_head.weight"}))


# --- VAE -----------------------------------------------------------------------------------------------------

_VaeRow = tuple[str, str, Shape]
"""diffusers' name, the original Flux name, shape of the weight; each row stands for a weight and its bias."""


def _resnet(ours: str, flux: str, width_in: int, width: int) -> Iterator[_VaeRow]:
    for norm, channels in (("norm1", width_in), ("norm2", width)):
        yield f"{ours}.{norm}", f"{flux}.{norm}", (channels,)
    yield f"{ours}.conv1", f"{flux}.conv1", (width, width_in, 3, 3)
    yield f"{ours}.conv2", f"{flux}.conv2", (width, width, 3, 3)
    if width_in != width:
        yield f"{ours}.conv_shortcut", f"{flux}.nin_shortcut", (width, width_in, 1, 1)


def _middle(side: str, width: int, attention: bool) -> Iterator[_VaeRow]:
    for i in (0, 1):
        yield from _resnet(f"{side}.mid_block.resnets.{i}", f"{side}.mid.block_{i + 1}", width, width)
    if attention:
        ours, flux = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        yield f"{ours}.group_norm", f"{flux}.norm", (width,)
        for name, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            yield f"{ours}.{name}", f"{flux}.{theirs}", (width, width)  # 1x1 convolutions in the original


def _ends(side: str, first: Shape, norm: int, last: Shape) -> Iterator[_VaeRow]:
    yield f"{side}.conv_in", f"{side}.conv_in", first
    yield f"{side}.conv_norm_out", f"{side}.norm_out", (norm,)
    yield f"{side}.conv_out", f"{side}.conv_out", last


def _encoder(config: VaeConfig) -> Iterator[_VaeRow]:
    widths, previous = config.block_out_channels, config.block_out_channels[0]
    last = (2 * config.latent_channels, widths[-1], 3, 3)  # mean and log variance
    yield from _ends("encoder", (widths[0], 3, 3, 3), widths[-1], last)
    for i, width in enumerate(widths):
        ours, flux = f"encoder.down_blocks.{i}", f"encoder.down.{i}"
        for j in range(config.layers_per_block):
            yield from _resnet(f"{ours}.resnets.{j}", f"{flux}.block.{j}", previous if j == 0 else width, width)
        if i + 1 < len(widths):
            yield f"{ours}.downsamplers.0.conv", f"{flux}.downsample.conv", (width, width, 3, 3)
        previous = width
    yield from _middle("encoder", widths[-1], config.mid_block_add_attention)


def _decoder(config: VaeConfig) -> Iterator[_VaeRow]:
    widths = config.block_out_channels[::-1]
    yield from _ends("decoder", (widths[0], config.latent_channels, 3, 3), widths[-1], (3, widths[-1], 3, 3))
    yield from _middle("decoder", widths[0], config.mid_block_add_attention)
    previous = widths[0]
    for i, width in enumerate(widths):
        ours, flux = f"decoder.up_blocks.{i}", f"decoder.up.{len(widths) - 1 - i}"  # the original counts from the image
        for j in range(config.layers_per_block + 1):
            yield from _resnet(f"{ours}.resnets.{j}", f"{flux}.block.{j}", previous if j == 0 else width, width)
        if i + 1 < len(widths):
            yield f"{ours}.upsamplers.0.conv", f"{flux}.upsample.conv", (width, width, 3, 3)
        previous = width


def vae_names(config: VaeConfig, layout: VaeLayout) -> NameTable:
    """244 names for the Flux VAE."""
    placements: dict[str, Placement] = {}
    for side in (_encoder, _decoder):
        rows: Callable[[VaeConfig], Iterator[_VaeRow]] = side
        for ours, flux, shape in rows(config):
            name = flux if layout == "flux" else ours
            placements[f"{name}.weight"] = Placement(f"{ours}.weight", 0, shape)
            placements[f"{name}.bias"] = Placement(f"{ours}.bias", 0, shape[:1])
    return NameTable(layout, placements)
