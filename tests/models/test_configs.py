"""Config files: what is missing, wrong or of another kind is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from zturbo.errors import ConfigError, WeightsNotFound
from zturbo.models.configs import SchedulerConfig, TextEncoderConfig, TransformerConfig, VaeConfig, read_json
from zturbo.weights import published

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "transformer": (TransformerConfig, dict(published.TRANSFORMER)),
    "text encoder": (TextEncoderConfig, dict(published.TEXT_ENCODER)),
    "vae": (VaeConfig, dict(published.VAE)),
    "scheduler": (SchedulerConfig, dict(published.SCHEDULER)),
}
CASES = [(kind, name) for kind, (config, members) in KINDS.items() for name in members if name in config.__slots__]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_missing_member_is_named(kind: str, name: str) -> None:
    config, members = KINDS[kind]
    del (members := dict(members))[name]
    with pytest.raises(ConfigError, match=f"config.json.*{name}"):
        config.from_dict(members, "config.json")


@pytest.mark.parametrize("wrong", [None, "many", -3, [], {}, float("nan"), 10**30])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_wrong_member_is_named_with_what_was_received(kind: str, name: str, wrong: Any) -> None:
    config, members = KINDS[kind]
    if name == "shift_factor" and wrong == -3:
        pytest.skip("the one number that may be negative")
    with pytest.raises(ConfigError, match=name):
        config.from_dict({**members, name: wrong}, "config.json")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("transformer", {"siglip_feat_dim": 1152}),
        ("transformer", {"n_kv_heads": 10}),
        ("transformer", {"axes_dims": [32, 48, 50]}),
        ("transformer", {"all_patch_size": [2, 4]}),
        ("text encoder", {"tie_word_embeddings": False}),
        ("text encoder", {"model_type": "llama"}),
        ("text encoder", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}),
        ("text encoder", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
        ("vae", {"use_quant_conv": True}),
        ("vae", {"norm_num_groups": 48}),
        ("scheduler", {"use_dynamic_shifting": True}),
        ("scheduler", {"shift": 0}),
    ],
    ids=str,
)
def test_another_kind_of_model_is_refused(kind: str, change: dict[str, Any]) -> None:
    config, members = KINDS[kind]
    with pytest.raises(ConfigError, match=next(iter(change)) + "|rope_type"):
        config.from_dict({**members, **change}, "config.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=r"nowhere\.json"):
        read_json(tmp_path / "nowhere.json")


def test_both_spellings_of_the_rotary_base() -> None:
    members = dict(published.TEXT_ENCODER)
    base = members.pop("rope_theta")
    new = {**members, "rope_parameters": {"rope_type": "default", "rope_theta": base}}
    assert TextEncoderConfig.from_dict(new, "new") == TextEncoderConfig.from_dict(
        json.loads(json.dumps({**members, "rope_theta": base})), "old"
    )
