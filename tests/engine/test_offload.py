"""A text encoder that streams through the device: what stays behind where memory runs out."""

import pytest
import torch

from zturbo.engine.offload import stream_layers
from zturbo.models.configs import TextEncoderConfig
from zturbo.models.text_encoder import Qwen3


@pytest.mark.parametrize("layer", range(3))
def test_a_layer_that_fails_leaves_no_copy_on_the_device(layer: int) -> None:
    # the last of the four layers is not asked: a prompt is embedded by what the one before it says
    encoder = Qwen3(TextEncoderConfig(64, 32, 64, 4, 2, 1, 16, 1e-6, 1e4)).eval().requires_grad_(False)
    stream_layers(encoder, torch.device("cpu"))
    homes = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for the hidden values")

    encoder.get_submodule(f"model.layers.{layer}.mlp.down_proj").register_forward_pre_hook(fail)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        encoder.encode(torch.arange(5)[None])
    assert {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()} == homes
