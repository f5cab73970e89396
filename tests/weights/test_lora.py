"""Adapters of every key convention, compared with a dense merge that the test computes from the definition."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.weights import models
from tests.weights.test_gguf import stored_as, write
from zturbo.errors import WeightsError, WeightsNotFound
from zturbo.models.transformer import ZImageTransformer
from zturbo.weights.checkpoint import Component, open_checkpoint
from zturbo.weights.lora import Lora, merge, open_lora
from zturbo.weights.names import Placement

State = dict[str, Tensor]

MODULES = (
    "layers.0.attention.to_q",
    "layers.0.attention.to_v",
    "layers.1.attention.to_out.0",
    "layers.1.feed_forward.w1",
    "layers.1.feed_forward.w3",
    "layers.0.feed_forward.w2",
    "layers.0.adaLN_modulation.0",
    "noise_refiner.0.attention.to_k",
    "context_refiner.0.feed_forward.w3",
)
RANK, ALPHA = 4, 6.0


def pairs(modules: Mapping[str, Tensor] | None = None, seed: int = 3) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (A (r, in), B (out, r)) of a size that a wrong scale or row shows."""
    generator = torch.Generator().manual_seed(seed)
    _, state = models.transformer()
    weights = modules or {module: state[f"{module}.weight"] for module in MODULES}
    return {
        module: (
            torch.randn(RANK, weight.shape[1], generator=generator),
            torch.randn(weight.shape[0], RANK, generator=generator),
        )
        for module, weight in weights.items()
    }


def merged(adapters: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> State:
    """Our parameters after W + scale * B A on the diffusers weights, in fp64."""
    _, state = models.transformer()
    out = dict(state)
    for module, (down, up) in adapters.items():
        delta = scale * up.double() @ down.double()
        out[f"{module}.weight"] = (state[f"{module}.weight"].double() + delta).float()
    return models.fused_transformer(out)


def load(component: Component[Any], *loras: Lora, dtype: torch.dtype = torch.float32) -> State:
    with torch.device("meta"):
        module = ZImageTransformer(component.config)
    component.load_into(module, dtype=dtype, device="cpu", loras=loras)
    return models.parameters(module)


def assert_close(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Component[Any]]:
    """The same weights with split and with fused q, k, v."""
    folder = tmp_path_factory.mktemp("bases")
    _, state = models.transformer()
    split = models.save(state, folder / "split.safetensors")
    fused = models.save(models.comfy(state), folder / "fused.safetensors")
    return {"split": open_checkpoint(split).transformer, "fused": open_checkpoint(fused).transformer}


def underscored(module: str) -> str:
    return module.replace(".", "_")


def keys(
    prefix: str, down: str, up: str, alpha: bool, spell: Callable[[str], str] = str
) -> Callable[[Mapping[str, tuple[Tensor, Tensor]]], State]:
    """A convention: how each adapter's tensors are named."""

    def make(adapters: Mapping[str, tuple[Tensor, Tensor]]) -> State:
        out = {}
        for module, (a, b) in adapters.items():
            out[f"{prefix}{spell(module)}.{down}"], out[f"{prefix}{spell(module)}.{up}"] = a, b
            if alpha:
                out[f"{prefix}{spell(module)}.alpha"] = torch.tensor(ALPHA)
        return out

    return make


CONVENTIONS = {
    "diffusers": keys("transformer.", "lora_A.weight", "lora_B.weight", alpha=False),
    "ai-toolkit": keys("diffusion_model.", "lora_A.weight", "lora_B.weight", alpha=False),
    "comfy": keys("model.diffusion_model.", "lora_down.weight", "lora_up.weight", alpha=True),
    "kohya": keys("lora_unet_", "lora_down.weight", "lora_up.weight", alpha=True, spell=underscored),
    "onetrainer": keys("lora_transformer_", "lora_down.weight", "lora_up.weight", alpha=True, spell=underscored),
    "lycoris": keys("lycoris_", "lora_down.weight", "lora_up.weight", alpha=True, spell=underscored),
    "diffsynth": keys("", "lora_A.default.weight", "lora_B.default.weight", alpha=False),
    "peft": keys("base_model.model.", "lora_A.weight", "lora_B.weight", alpha=False),
    "dotted": keys("lora_unet_", "lora.down.weight", "lora.up.weight", alpha=True, spell=underscored),
    "short": keys("diffusion_model.", "lora_A", "lora_B", alpha=True),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_lora_of_every_convention(tmp_path: Path, bases: dict[str, Component[Any]], convention: str) -> None:
    adapters = pairs()
    tensors = CONVENTIONS[convention](adapters)
    strength = ALPHA / RANK if any(name.endswith(".alpha") for name in tensors) else 1.0
    path = models.save(tensors, tmp_path / "lora.safetensors")
    base = bases["split" if convention in ("diffusers", "kohya") else "fused"]
    lora = open_lora(path, base.config, scale=0.5)
    assert_close(load(base, lora), merged(adapters, 0.5 * strength))


@pytest.mark.parametrize("convention", ["ai-toolkit", "kohya", "diffsynth"])
def test_conventions_mean_what_diffusers_reads_in_them(tmp_path: Path, convention: str) -> None:
    """diffusers' own converter, where it knows the convention, gives the same adapters."""
    tensors = CONVENTIONS[convention](pairs())
    theirs = _convert_non_diffusers_z_image_lora_to_diffusers(dict(tensors))
    config, _ = models.transformer()
    ours = open_lora(models.save(tensors, tmp_path / "a.safetensors"), config)
    assert_same(ours, open_lora(models.save(theirs, tmp_path / "b.safetensors"), config))


def assert_same(ours: Lora, same: Lora) -> None:
    assert ours.deltas.keys() == same.deltas.keys()
    for parameter, deltas in ours.deltas.items():
        for one, other in zip(deltas, same.deltas[parameter], strict=True):
            assert (one.first_row, one.count) == (other.first_row, other.count)
            torch.testing.assert_close(one.rows(0, one.count), other.rows(0, other.count))


@pytest.fixture
def both_spellings() -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Tensor, Tensor]]]:
    """Adapters of one attention, split and fused; they differ, so that it shows which of them count."""
    _, state = models.transformer()
    fused = models.comfy(state)
    split = [f"layers.0.attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    merged = [f"layers.0.attention.{name}" for name in ("qkv", "out")]
    return (
        pairs({module: state[f"{module}.weight"] for module in split}),
        pairs({module: fused[f"{module}.weight"] for module in merged}, seed=4),
    )


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_lora_that_holds_its_attention_split_and_fused(
    tmp_path: Path, both_spellings: tuple[Any, Any], convention: str
) -> None:
    split, fused = both_spellings
    config, _ = models.transformer()
    make = CONVENTIONS[convention]
    lora = open_lora(models.save({**make(fused), **make(split)}, tmp_path / "both.safetensors"), config)
    assert_same(lora, open_lora(models.save(make(split), tmp_path / "split.safetensors"), config))


def test_diffusers_drops_the_same_copies(tmp_path: Path, both_spellings: tuple[Any, Any]) -> None:
    split, fused = both_spellings
    config, _ = models.transformer()
    tensors = {**CONVENTIONS["kohya"](fused), **CONVENTIONS["kohya"](split)}
    theirs = _convert_non_diffusers_z_image_lora_to_diffusers(dict(tensors))
    ours = open_lora(models.save(tensors, tmp_path / "a.safetensors"), config)
    assert_same(ours, open_lora(models.save(theirs, tmp_path / "b.safetensors"), config))


@pytest.mark.parametrize("missing", ["to_q", "to_k", "to_v"])
def test_a_fused_copy_of_which_a_part_is_missing_is_no_copy(
    tmp_path: Path, both_spellings: tuple[Any, Any], missing: str
) -> None:
    """Without it that part would be lost."""
    split, fused = both_spellings
    del split[f"layers.0.attention.{missing}"]
    config, _ = models.transformer()
    tensors = {**CONVENTIONS["peft"](fused), **CONVENTIONS["peft"](split)}
    with pytest.raises(WeightsError, match=r"adapts layers\.0\.attention\.to_qkv\.weight twice over the same rows"):
        open_lora(models.save(tensors, tmp_path / "lora.safetensors"), config)


def test_copies_behind_different_prefixes_are_two_adapters(tmp_path: Path, both_spellings: tuple[Any, Any]) -> None:
    split, fused = both_spellings
    config, _ = models.transformer()
    tensors = {**CONVENTIONS["peft"](fused), **CONVENTIONS["diffusers"](split)}
    with pytest.raises(WeightsError, match="twice over the same rows"):
        open_lora(models.save(tensors, tmp_path / "lora.safetensors"), config)


@pytest.mark.parametrize("base", ["split", "fused"])
@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_a_lora_of_the_fused_qkv(tmp_path: Path, bases: dict[str, Component[Any]], base: str, prefix: str) -> None:
    """One A for q, k and v; it merges into either base."""
    _, state = models.transformer()
    fused = models.comfy(state)
    modules = {f"layers.{i}.attention.qkv": fused[f"layers.{i}.attention.qkv.weight"] for i in (0, 1)}
    modules |= {"layers.0.attention.out": fused["layers.0.attention.out.weight"]}
    adapters = pairs(modules)
    spell = underscored if prefix.endswith("_") else str
    tensors = keys(prefix, "lora_down.weight", "lora_up.weight", alpha=True, spell=spell)(adapters)
    lora = open_lora(models.save(tensors, tmp_path / "f.safetensors"), bases[base].config)
    split = {}
    for module, (down, up) in adapters.items():
        if module.endswith("qkv"):
            for letter, rows in zip("qkv", up.chunk(3), strict=True):
                split[module.replace("qkv", f"to_{letter}")] = (down, rows)
        else:
            split[module.replace("attention.out", "attention.to_out.0")] = (down, up)
    assert_close(load(bases[base], lora), merged(split, ALPHA / RANK))


@pytest.mark.parametrize(
    ("names", "strength"),
    [
        (("lokr_w1", "lokr_w2"), 1.0),  # alpha has no meaning where both factors are whole
        (("lokr_w1", "lokr_w2_a", "lokr_w2_b"), 6.0 / 3),
        (("lokr_w1_a", "lokr_w1_b", "lokr_w2"), 6.0 / 2),
        (("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"), 6.0 / 3),
    ],
)
@pytest.mark.parametrize("base", ["split", "fused"])
@pytest.mark.parametrize("module", ["layers.0.attention.to_k", "layers.0.attention.qkv", "layers.1.feed_forward.w1"])
def test_a_lokr(
    tmp_path: Path, bases: dict[str, Component[Any]], names: tuple[str, ...], strength: float, base: str, module: str
) -> None:
    _, state = models.transformer()
    weight = (models.comfy(state) if "qkv" in module else state)[f"{module}.weight"]
    generator = torch.Generator().manual_seed(0)
    w1 = torch.randn(2, 4, generator=generator)
    w1_a, w1_b = torch.randn(2, 2, generator=generator), torch.randn(2, 4, generator=generator)
    rows, columns = weight.shape[0] // 2, weight.shape[1] // 4
    w2 = torch.randn(rows, columns, generator=generator)
    w2_a, w2_b = torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator)
    parts = {"lokr_w1": w1, "lokr_w1_a": w1_a, "lokr_w1_b": w1_b, "lokr_w2": w2, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}
    tensors = {f"diffusion_model.{module}.{name}": parts[name] for name in names}
    tensors[f"diffusion_model.{module}.alpha"] = torch.tensor(6.0)
    lora = open_lora(models.save(tensors, tmp_path / "lokr.safetensors"), bases[base].config, scale=0.7)

    left = w1 if "lokr_w1" in names else w1_a @ w1_b
    right = w2 if "lokr_w2" in names else w2_a @ w2_b
    delta = 0.7 * strength * torch.kron(left, right)
    out = dict(state)
    if "qkv" in module:
        for letter, part in zip("qkv", delta.chunk(3), strict=True):
            name = f"layers.0.attention.to_{letter}.weight"
            out[name] = state[name] + part
    else:
        out[f"{module}.weight"] = state[f"{module}.weight"] + delta
    assert_close(load(bases[base], lora), models.fused_transformer(out))


@pytest.mark.parametrize(
    ("settings_", "strengths"),
    [
        ({"r": RANK, "lora_alpha": 8}, (2.0, 2.0)),
        ({"r": RANK, "lora_alpha": 8, "use_rslora": True}, (4.0, 4.0)),
        ({"r": RANK, "lora_alpha": 8, "alpha_pattern": {"to_q": 2, "other": 5}}, (0.5, 2.0)),
        ({"r": RANK, "lora_alpha": 8, "alpha_pattern": {"^layers.0.attention.to_q": 2}}, (0.5, 2.0)),
        ({"r": RANK, "lora_alpha": 8, "alpha_pattern": {"^attention.to_q": 2}}, (2.0, 2.0)),  # not its whole name
        ({"r": RANK}, (1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("place", ["metadata", "adapter_config.json"])
def test_alpha_of_peft(
    tmp_path: Path, bases: dict[str, Component[Any]], settings_: Any, strengths: tuple[float, float], place: str
) -> None:
    """diffusers writes PEFT's settings into the file's metadata, PEFT itself beside the file."""
    modules = ("layers.0.attention.to_q", "layers.1.feed_forward.w1")
    adapters = {module: pairs()[module] for module in modules}
    tensors = CONVENTIONS["peft" if place == "adapter_config.json" else "diffusers"](adapters)
    note = None
    if place == "metadata":
        note = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings_.items()})}
    else:
        (tmp_path / place).write_text(json.dumps(settings_))
    base = bases["split"]
    lora = open_lora(models.save(tensors, tmp_path / "adapter_model.safetensors", note), base.config)
    scaled = {m: (a, strength * b) for (m, (a, b)), strength in zip(adapters.items(), strengths, strict=True)}
    assert_close(load(base, lora), merged(scaled, 1.0))


@pytest.mark.parametrize(
    ("settings_", "strength"),
    [
        ({"r": 16, "alpha": 8}, 0.5),
        ({"r": 16, "alpha": 8, "alpha_pattern": {"to_k": 4}, "rank_pattern": {"to_k": 2}}, 2.0),
    ],
)
@pytest.mark.parametrize("place", ["metadata", "adapter_config.json"])
@pytest.mark.parametrize("low_rank", [False, True])
def test_a_lokr_of_peft(
    tmp_path: Path, bases: dict[str, Component[Any]], settings_: Any, strength: float, place: str, low_rank: bool
) -> None:
    """Its strength is alpha / r of the settings, whether or not its factors are themselves low-rank."""
    module = "layers.0.attention.to_k"
    _, state = models.transformer()
    rows, columns = (side // 2 for side in state[f"{module}.weight"].shape)
    left, a, b = torch.randn(2, 2), torch.randn(rows, 3), torch.randn(3, columns)
    right = {"lokr_w2_a": a, "lokr_w2_b": b} if low_rank else {"lokr_w2": a @ b}
    prefix, note, said = "base_model.model.", None, {"peft_type": "LOKR", **settings_}
    if place == "metadata":
        prefix = "transformer."
        note = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in said.items()})}
    else:
        (tmp_path / place).write_text(json.dumps(said))
    tensors = {f"{prefix}{module}.{name}": part for name, part in {"lokr_w1": left, **right}.items()}
    lora = open_lora(models.save(tensors, tmp_path / "adapter_model.safetensors", note), bases["split"].config)
    weight = state[f"{module}.weight"] + strength * torch.kron(left, a @ b)
    assert_close(load(bases["split"], lora), models.fused_transformer({**state, f"{module}.weight": weight}))


@pytest.mark.parametrize(
    ("settings_", "reason"),
    [({"r": 16}, "no r or no alpha"), ({"alpha": 8}, "no r or no alpha"), ({"r": 0, "alpha": 8}, "positive number"),
     ({"r": "16", "alpha": 8}, "the rank '16'")],
)  # fmt: skip
def test_a_lokr_of_peft_without_its_strength_is_refused(tmp_path: Path, settings_: Any, reason: str) -> None:
    config, _ = models.transformer()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", **settings_}))
    tensors = {f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2": torch.ones(128, 128)}
    with pytest.raises(WeightsError, match=reason):
        open_lora(models.save(tensors, tmp_path / "adapter_model.safetensors"), config)


def test_several_adapters_add_up(tmp_path: Path, bases: dict[str, Component[Any]]) -> None:
    first, second = pairs(seed=3), pairs(seed=4)
    base = bases["fused"]
    loras = [
        open_lora(models.save(CONVENTIONS["peft"](adapters), tmp_path / f"{i}.safetensors"), base.config, scale)
        for i, (adapters, scale) in enumerate([(first, 0.5), (second, -2.0)])
    ]
    both = {
        module: (torch.cat([down, second[module][0]]), torch.cat([0.5 * up, -2.0 * second[module][1]], dim=1))
        for module, (down, up) in first.items()
    }
    assert_close(load(base, *loras), merged(both, 1.0))


def test_the_base_may_be_quantized(tmp_path: Path) -> None:
    """bf16(dequantized + delta): the base is not rounded before the sum."""
    config, state = models.transformer()
    stored = {name: stored_as(tensor, Kind.Q8_0) for name, tensor in models.comfy(state).items()}
    base = open_checkpoint(write(tmp_path / "base.gguf", stored)).transformer
    adapters = {"layers.0.attention.to_k": pairs()["layers.0.attention.to_q"]}
    lora = open_lora(models.save(CONVENTIONS["peft"](adapters), tmp_path / "l.safetensors"), config, 0.01)
    loaded = load(base, lora, dtype=torch.bfloat16)
    weight = torch.from_numpy(gguf.dequantize(*stored["layers.0.attention.qkv.weight"]))
    down, up = adapters["layers.0.attention.to_k"]
    weight[256:512] += 0.01 * up @ down
    assert torch.equal(loaded["layers.0.attention.to_qkv.weight"], weight.bfloat16())
    untouched = "layers.1.attention.to_qkv.weight"
    assert torch.equal(loaded[untouched], load(base, dtype=torch.bfloat16)[untouched])


@given(
    base_cut=st.integers(1, 39),
    lora_cut=st.integers(1, 39),
    rank=st.integers(1, 5),
    at_once=st.sampled_from([1, 7, 1024]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_meet_however_base_and_adapter_are_cut(
    monkeypatch: pytest.MonkeyPatch, base_cut: int, lora_cut: int, rank: int, at_once: int
) -> None:
    from zturbo.weights import lora as module

    monkeypatch.setattr(module, "ROWS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(base_cut)
    weight, up = torch.randn(40, 6, generator=generator), torch.randn(40, rank, generator=generator)
    down = torch.randn(rank, 6, generator=generator)
    deltas = [module._LowRank(0, up[:lora_cut], down), module._LowRank(lora_cut, up[lora_cut:], down)]
    adapter = Lora(Path("memory"), 1.0, {"p": deltas})
    places = {"a": Placement("p", 0, (base_cut, 6)), "b": Placement("p", base_cut, (40 - base_cut, 6))}
    stream = [("a", weight[:base_cut]), ("b", weight[base_cut:]), ("c", weight)]
    out = dict(merge(stream, places, [adapter]))
    torch.testing.assert_close(torch.cat([out["a"], out["b"]]), weight + up @ down)
    assert out["c"] is weight


# --- refusals ------------------------------------------------------------------------------------------------


def one() -> State:
    return CONVENTIONS["peft"]({"layers.0.attention.to_q": pairs()["layers.0.attention.to_q"]})


Q = "base_model.model.layers.0.attention.to_q"
MISFIT = "does not fit the weight"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds no adapter"),
        ({**one(), "lora_te1_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 1)}, "adapts the text encoder"),
        ({**one(), "text_encoder.layers.0.lora_A.weight": torch.ones(1, 1)}, "adapts the text encoder"),
        ({**one(), f"{Q}.dora_scale": torch.ones(256)}, "is DoRA"),
        ({**one(), f"{Q}.lora_magnitude_vector.weight": torch.ones(256)}, "is DoRA"),
        ({**one(), f"{Q}.magnitude": torch.ones(256)}, "is DoRA"),
        ({f"{Q}.hada_w1_a": torch.ones(256, 4)}, "is LoHa"),
        ({f"{Q}.diff": torch.ones(256, 256)}, "is full differences"),
        ({**one(), f"{Q}.lora_mid.weight": torch.ones(4, 4)}, "is a convolution's LoRA"),
        ({"control_layers.0.attention.to_q.weight": torch.ones(1)}, "is a ControlNet"),
        ({**one(), f"{Q.replace('0', '2')}.lora_A.weight": torch.ones(4, 256)}, r"1 keys fit no linear.*layers\.2"),
        ({**one(), f"{Q}.lora_A.bias": torch.ones(4)}, r"1 keys fit no linear.*lora_A\.bias"),
        ({**one(), f"{Q}.lora_C.weight": torch.ones(4)}, "1 keys fit no linear"),
        ({**one(), "layers.0.attention_norm1.lora_A.weight": torch.ones(4, 256)}, "1 keys fit no linear"),
        ({**one(), **{f"unknown.{i}.lora_A.weight": torch.ones(1) for i in range(12)}}, r"12 keys.*\(12 in all\)"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 256)}, "only down: the adapter is not complete"),
        ({f"{Q}.alpha": torch.ones(())}, "only alpha: the adapter is not complete"),
        ({**one(), f"{Q}.lokr_w1": torch.ones(2, 2)}, "only down, lokr_w1, up"),
        ({f"{Q}.lokr_w1": torch.ones(2, 2), f"{Q}.lokr_w2_a": torch.ones(2, 2)}, "not complete"),
        ({**one(), f"{Q}.lora_down.weight": torch.ones(4, 256)}, "the part down .* twice"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 255), f"{Q}.lora_B.weight": torch.ones(256, 4)}, MISFIT),
        ({f"{Q}.lora_A.weight": torch.ones(4, 256), f"{Q}.lora_B.weight": torch.ones(256, 5)}, MISFIT),
        ({f"{Q}.lora_A.weight": torch.ones(0, 256), f"{Q}.lora_B.weight": torch.ones(256, 0)}, MISFIT),
        ({f"{Q}.lora_A.weight": torch.ones(4), f"{Q}.lora_B.weight": torch.ones(256, 4)}, MISFIT),
        ({f"{Q}.lokr_w1": torch.ones(3, 4), f"{Q}.lokr_w2": torch.ones(128, 64)}, MISFIT),
        ({f"{Q}.lokr_w1_a": torch.ones(10**6, 1), f"{Q}.lokr_w1_b": torch.ones(1, 10**6),
          f"{Q}.lokr_w2": torch.ones(1, 1)}, MISFIT),
        ({**one(), f"{Q}.alpha": torch.ones(2)}, "alpha of 2 values"),
        ({**one(), f"{Q}.alpha": torch.tensor(float("nan"))}, "expected a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_named(tmp_path: Path, tensors: State, reason: str) -> None:
    config, _ = models.transformer()
    path = models.save(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(WeightsError, match=reason) as caught:
        open_lora(path, config)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ("{", "unreadable lora_adapter_metadata"),
        ("[]", "not a JSON object"),
        ('{"transformer.lora_alpha": "8"}', "the alpha '8'"),
        ('{"transformer.lora_alpha": true}', "the alpha True"),
        ('{"transformer.alpha_pattern": [1]}', "alpha_pattern"),
        ('{"transformer.alpha_pattern": {"layers\\\\.[0-9]+": 4}}', "regular expression .*names are supported"),
        ('{"transformer.use_dora": true}', "is DoRA"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, note: str, reason: str) -> None:
    config, _ = models.transformer()
    path = models.save(one(), tmp_path / "lora.safetensors", {"lora_adapter_metadata": note})
    with pytest.raises(WeightsError, match=reason):
        open_lora(path, config)


def test_a_lora_must_be_a_safetensors_file(tmp_path: Path) -> None:
    config, _ = models.transformer()
    with pytest.raises(WeightsNotFound):
        open_lora(tmp_path / "missing.safetensors", config)
    torch.save(one(), tmp_path / "lora.pt")
    with pytest.raises(WeightsError, match="is a pickle"):
        open_lora(tmp_path / "lora.pt", config)
    values = torch.ones(2, 32).numpy()
    with pytest.raises(WeightsError, match="not a safetensors file"):
        open_lora(write(tmp_path / "lora.gguf", {"x": (values, Kind.F32)}), config)
    with pytest.raises(WeightsError, match="must be finite"):
        open_lora(models.save(one(), tmp_path / "a.safetensors"), config, scale=float("inf"))
