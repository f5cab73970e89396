"""Opening and loading every published form of a model, from files that the reference libraries wrote."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import reference
from tests.weights import models
from zturbo.errors import ConfigError, WeightsError, WeightsNotFound
from zturbo.models.configs import TextEncoderConfig, TransformerConfig, VaeConfig
from zturbo.models.transformer import ZImageTransformer
from zturbo.models.vae import AutoencoderKL
from zturbo.weights import names, published
from zturbo.weights.checkpoint import open_checkpoint, open_text_encoder, open_vae
from zturbo.weights.names import NameTable, Shape

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def sparse(path: Path, shapes: Mapping[str, Shape]) -> Path:
    """A bf16 safetensors file of any size that takes no disk: a true header over a hole."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + position)
    return path


def shapes_of(table: NameTable) -> dict[str, Shape]:
    return {name: place.shape for name, place in table.placements.items()}


# --- folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shard_size"), [(torch.float32, "10GB"), (torch.bfloat16, "200KB"), (torch.float16, "200KB")], ids=str
)
def test_a_diffusers_folder(tmp_path: Path, dtype: torch.dtype, shard_size: str) -> None:
    pipe = reference.pipeline().to(dtype)
    pipe.save_pretrained(tmp_path, max_shard_size=shard_size)
    sharded = (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    assert sharded == (shard_size == "200KB")

    checkpoint = open_checkpoint(tmp_path)

    assert checkpoint.kind == "diffusers folder"
    assert checkpoint.scheduler.shift == 3.0
    assert checkpoint.tokenizer == tmp_path / "tokenizer" / "tokenizer.json"
    assert checkpoint.text_encoder is not None
    assert checkpoint.vae is not None
    expected = models.fused_transformer(pipe.transformer.state_dict())
    models.assert_same(models.load_transformer(checkpoint.transformer), expected)
    encoder = {name: tensor for name, tensor in pipe.text_encoder.state_dict().items() if name != "lm_head.weight"}
    models.assert_same(models.load_text_encoder(checkpoint.text_encoder), models.fused_text_encoder(encoder))
    models.assert_same(models.load_vae(checkpoint.vae), pipe.vae.state_dict())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_cast_while_loading(tiny_folder: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(tiny_folder)
    expected = models.fused_transformer(reference.transformer().state_dict())
    models.assert_same(models.load_transformer(checkpoint.transformer, dtype), expected, dtype)


def test_a_vae_without_its_encoder(tiny_folder: Path) -> None:
    component = open_checkpoint(tiny_folder).vae
    assert component is not None
    with torch.device("meta"):
        module = AutoencoderKL(component.config)
    del module.encoder
    component.without("encoder.").load_into(module, dtype=torch.float32, device="cpu")
    expected = {name: tensor for name, tensor in reference.vae().state_dict().items() if name.startswith("decoder.")}
    models.assert_same(models.parameters(module), expected)


def test_a_stored_output_head_is_ignored(tmp_path: Path) -> None:
    """Some tools write the tied embedding a second time as lm_head."""
    config, state = models.text_encoder()
    model = reference.text_encoder(hidden_size=64, intermediate_size=96, vocab_size=96)
    model.config.save_pretrained(tmp_path)
    models.save({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    component = open_text_encoder(tmp_path)
    assert component.config == config
    models.assert_same(models.load_text_encoder(component), models.fused_text_encoder(state))


@pytest.mark.parametrize("shard_size", ["10GB", "50KB"])
def test_a_folder_that_was_saved_again(tmp_path: Path, shard_size: str) -> None:
    """diffusers may hold the text encoder without its head, and then saves it under the names it has by itself."""
    whole = reference.text_encoder()
    pipe = reference.pipeline(text_encoder=whole.model)
    pipe.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder"] == ["transformers", "Qwen3Model"]

    component = open_checkpoint(tmp_path).text_encoder

    assert component is not None
    assert "layers.0.self_attn.q_proj.weight" in component.source.shapes
    state = {name: tensor for name, tensor in whole.state_dict().items() if name != "lm_head.weight"}
    expected = models.fused_text_encoder(state)
    models.assert_same(models.load_text_encoder(component), expected)
    models.assert_same(models.load_text_encoder(open_text_encoder(tmp_path / "text_encoder")), expected)


def test_a_folder_of_another_text_encoder_is_refused(tmp_path: Path) -> None:
    reference.text_encoder().config.save_pretrained(tmp_path)
    t5 = {f"encoder.block.{i}.layer.0.SelfAttention.q.weight": torch.ones(1) for i in range(3)}
    models.save(t5, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="holds no Qwen3 text encoder"):
        open_text_encoder(tmp_path)


def test_a_folder_of_another_pipeline_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(WeightsError, match="FluxPipeline"):
        open_checkpoint(tmp_path)


def test_paths_that_are_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="transformer/"):
        open_checkpoint(tmp_path)
    with pytest.raises(WeightsNotFound, match="nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "transformer").mkdir()
    with pytest.raises(WeightsNotFound, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_a_folder_of_single_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "split_files" / "diffusion_models").mkdir(parents=True)
    file = tmp_path / "split_files" / "diffusion_models" / "z_image_turbo.safetensors"
    file.touch()
    with pytest.raises(WeightsNotFound, match="transformer/") as caught:
        open_checkpoint(tmp_path)
    assert str(file) in caught.value.hint


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    pipe = reference.pipeline(text_encoder=reference.text_encoder(hidden_size=64))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="64 values per token"):
        open_checkpoint(tmp_path)


# --- single files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["diffusers", "comfy"])
def test_a_single_file_in_either_layout(tmp_path: Path, layout: str, prefix: str) -> None:
    """diffusers' own converter breaks on files that already use its names; here both layouts load."""
    config, state = models.transformer()
    stored = models.comfy(state, prefix) if layout == "comfy" else prefixed(state, prefix)
    path = models.save(stored, tmp_path / "model.safetensors")

    checkpoint = open_checkpoint(path)

    assert checkpoint.transformer.config == config  # told from shapes alone
    assert checkpoint.transformer.table.layout == layout
    assert [checkpoint.text_encoder, checkpoint.vae, checkpoint.tokenizer] == [None, None, None]
    assert checkpoint.scheduler.shift == 3.0
    models.assert_same(models.load_transformer(checkpoint.transformer), models.fused_transformer(state))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_file_in_every_float(tmp_path: Path, dtype: torch.dtype) -> None:
    _, state = models.transformer()
    stored = {name: tensor.to(dtype) for name, tensor in models.comfy(state).items()}
    checkpoint = open_checkpoint(models.save(stored, tmp_path / "model.safetensors"))
    rounded = models.fused_transformer({name: tensor.to(dtype).float() for name, tensor in state.items()})
    models.assert_same(models.load_transformer(checkpoint.transformer), rounded)


def test_stray_names_are_ignored_and_unknown_ones_are_not(tmp_path: Path) -> None:
    _, state = models.transformer()
    stray = {"norm_final.weight": torch.ones(256), "layers.0.attention.to_out.0.bias": torch.zeros(256)}
    path = models.save({**models.comfy(state), **stray}, tmp_path / "stray.safetensors")
    models.assert_same(models.load_transformer(open_checkpoint(path).transformer), models.fused_transformer(state))

    more = {f"control_layers.{i}.weight": torch.ones(1) for i in range(12)}
    path = models.save({**state, **more}, tmp_path / "more.safetensors")
    with pytest.raises(WeightsError, match=r"12 tensors do not belong.*control_layers\.0.*\(12 in all\)") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert caught.value.message.count("control_layers") == 10


def test_a_file_with_a_missing_tensor_is_refused_before_it_is_read(tmp_path: Path) -> None:
    _, state = models.transformer()
    stored = models.comfy(state)
    del stored["layers.1.feed_forward.w2.weight"], stored["cap_pad_token"]
    path = models.save(stored, tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"2 tensors are missing: cap_pad_token, layers\.1\.feed_forward\.w2\.weight"
    ):
        open_checkpoint(path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    _, state = models.transformer()
    stored = models.comfy(state) | {"layers.1.ffn_norm1.weight": torch.ones(255)}
    path = models.save(stored, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layers\.1\.ffn_norm1\.weight has the shape \[255\], expected \[256\]"):
        open_checkpoint(path)


def test_two_layouts_in_one_file_are_ambiguous(tmp_path: Path) -> None:
    _, state = models.transformer()
    path = models.save({**state, **models.comfy(state)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="2 different layouts"):
        open_checkpoint(path)


def test_another_head_width_needs_a_config(tmp_path: Path) -> None:
    path = models.save(reference.transformer().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="heads of 64 values") as caught:
        open_checkpoint(path)
    assert "config.json" in caught.value.hint


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = models.save({"double_blocks.0.img_attn.qkv.weight": torch.ones(3, 1)}, tmp_path / "flux.safetensors")
    with pytest.raises(WeightsError, match="holds no Z-Image transformer"):
        open_checkpoint(path)


# --- full size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("layout", "count"), [("diffusers", 521), ("comfy", 453)])
def test_the_published_6b_opens_from_its_header(
    tmp_path: Path, layout: names.TransformerLayout, count: int, prefix: str
) -> None:
    config = TransformerConfig.from_dict(published.TRANSFORMER, "published")
    table = names.transformer_names(config, layout).prefixed(prefix)
    path = sparse(tmp_path / "z_image_turbo_bf16.safetensors", shapes_of(table))
    assert path.stat().st_size > 2 * 6_154_908_736
    component = open_checkpoint(path).transformer
    assert component.config == config
    assert len(component.table.placements) == count


def test_the_published_text_encoder_and_vae_open_from_their_headers(tmp_path: Path) -> None:
    _, state = models.transformer()
    encoder = TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published")
    vae = VaeConfig.from_dict(published.VAE, "published")
    qwen = sparse(tmp_path / "qwen_3_4b.safetensors", shapes_of(names.text_encoder_names(encoder, "transformers")))
    for layout in ("diffusers", "flux"):
        shapes = shapes_of(names.vae_names(vae, layout))
        if layout == "flux":  # the original file stores the attention as 1x1 convolutions
            shapes |= {n: (*s, 1, 1) for n, s in shapes.items() if ".attn_1." in n and len(s) == 2}
        ae = sparse(tmp_path / f"{layout}.safetensors", shapes)
        component = open_vae(ae)
        assert component.config == vae
        assert component.table.layout == layout
    assert open_text_encoder(qwen).config == encoder
    bare = shapes_of(names.text_encoder_names(encoder, "transformers base"))
    assert open_text_encoder(sparse(tmp_path / "saved_again.safetensors", bare)).config == encoder
    config = TransformerConfig.from_dict(published.TRANSFORMER, "published")
    turbo = sparse(tmp_path / "turbo.safetensors", shapes_of(names.transformer_names(config, "comfy")))
    checkpoint = open_checkpoint(turbo, text_encoder=qwen, vae=ae)
    assert checkpoint.tokenizer is None
    for place in ("tokenizer/tokenizer.json", "tokenizer.json"):  # the nearer one counts
        (qwen.parent / place).parent.mkdir(exist_ok=True)
        (qwen.parent / place).touch()
        assert open_checkpoint(turbo, text_encoder=qwen).tokenizer == qwen.parent / place
    assert open_checkpoint(turbo).tokenizer is None  # it is the text encoder's, and that is not named
    assert checkpoint.text_encoder is not None
    assert checkpoint.vae is not None
    parts = (checkpoint.transformer, checkpoint.text_encoder, checkpoint.vae)
    assert [len(part.table.placements) for part in parts] == [453, 398, 244]
    assert [part.source.path for part in parts] == [turbo, qwen, ae]
    # the tiny transformer takes 64 values per token, Qwen3-4B gives 2560
    with pytest.raises(WeightsError, match="2560 values per token"):
        open_checkpoint(models.save(state, tmp_path / "tiny.safetensors"), text_encoder=qwen, vae=ae)


def test_the_published_parts_in_one_file(tmp_path: Path) -> None:
    """ComfyUI's whole checkpoints: three parts, each behind its prefix."""
    parts = {
        "model.diffusion_model.": names.transformer_names(
            TransformerConfig.from_dict(published.TRANSFORMER, "published"), "comfy"
        ),
        "text_encoders.qwen3_4b.transformer.": names.text_encoder_names(
            TextEncoderConfig.from_dict(published.TEXT_ENCODER, "published"), "transformers"
        ),
        "vae.": names.vae_names(VaeConfig.from_dict(published.VAE, "published"), "flux"),
    }
    shapes = {name: shape for p, table in parts.items() for name, shape in shapes_of(table.prefixed(p)).items()}
    shapes["text_encoders.qwen3_4b.logit_scale"] = ()
    checkpoint = open_checkpoint(sparse(tmp_path / "all_in_one.safetensors", shapes))
    assert len(checkpoint.transformer.table.placements) == 453
    assert checkpoint.text_encoder is not None
    assert len(checkpoint.text_encoder.table.placements) == 398
    assert checkpoint.vae is not None
    assert len(checkpoint.vae.table.placements) == 244
    assert checkpoint.tokenizer is None
    (tmp_path / "tokenizer.json").touch()  # of the text encoder that is in the file
    assert open_checkpoint(checkpoint.path).tokenizer == tmp_path / "tokenizer.json"
    with pytest.raises(WeightsError, match=r"1 tensors do not belong to this model: unet\.extra"):
        open_checkpoint(sparse(tmp_path / "more.safetensors", {**shapes, "unet.extra": (1,)}))


def test_another_size_of_qwen3_needs_a_config(tmp_path: Path) -> None:
    _, state = models.text_encoder()
    with pytest.raises(WeightsError, match=r"not the published Qwen3-4B.*'hidden_size': 64"):
        open_text_encoder(models.save(state, tmp_path / "qwen.safetensors"))


def test_a_flux_vae_file_loads_with_its_attention_squeezed(tmp_path: Path) -> None:
    config, state = models.vae()
    table = names.vae_names(config, "flux")
    stored = {name: state[place.parameter] for name, place in table.placements.items()}
    stored |= {n: t[:, :, None, None] for n, t in stored.items() if ".attn_1." in n and t.ndim == 2}
    path = models.save(stored, tmp_path / "ae.safetensors")
    with pytest.raises(WeightsError, match="not the published Flux VAE"):
        open_vae(path)  # its scaling is unknown, so the config must come from a folder
    from zturbo.weights.load import load_weights
    from zturbo.weights.single_file import open_file

    source = open_file(path)
    with torch.device("meta"):
        module = AutoencoderKL(config)
    stream = source.tensors(frozenset(table.placements), torch.float32)
    load_weights(module, stream, table.placements, source=path, dtype=torch.float32, device="cpu")
    models.assert_same(models.parameters(module), state)


def test_a_config_that_does_not_fit_its_weights_is_refused(tmp_path: Path) -> None:
    reference.save(reference.pipeline(), tmp_path)
    file = tmp_path / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"n_layers": 4}))
    with pytest.raises(WeightsError, match=r"15 tensors are missing: layers\.3\."):
        open_checkpoint(tmp_path)
    for name in ("n_layers", "n_refiner_layers"):
        file.write_text(json.dumps(config | {name: 1_000_000}))
        with pytest.raises(WeightsError, match=r"asks for [12]00000[0-9] blocks"):
            open_checkpoint(tmp_path)
    del config["dim"]
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="'dim' is missing"):
        open_checkpoint(tmp_path)


def test_a_module_of_another_config_is_our_mistake(tiny_folder: Path) -> None:
    """Placing into a wrong module is no fault of the file: it fails an assertion and fills nothing silently."""
    component = open_checkpoint(tiny_folder).transformer
    deeper = TransformerConfig.from_dict(
        {**published.TRANSFORMER, "dim": 128, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [16, 24, 24],
         "cap_feat_dim": 48, "n_layers": 4}, "deeper",
    )  # fmt: skip
    with torch.device("meta"):
        module = ZImageTransformer(deeper)
    with pytest.raises(AssertionError, match=r"layers\.3"):
        component.load_into(module, dtype=torch.float32, device="cpu")
