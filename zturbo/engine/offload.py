"""A text encoder larger than the device: its layers stay on the host and pass through the device one by one.

One new prompt costs one copy of the weights over the bus (7 GB for Qwen3-4B, about 0.3 s over PCIe 4), a known
prompt costs nothing, and the memory is the transformer's the whole time.
"""

from typing import Any

import torch
from torch import Tensor, nn

from zturbo.models.text_encoder import Qwen3


def stream_layers(text_encoder: Qwen3, device: torch.device) -> None:
    """Make a text encoder on the host compute on `device`; the embedding and the last norm stay on the host.

    Args:
        text_encoder: loaded on the CPU.
        device: where its layers compute and where `encode` returns.
    """
    text_encoder.model.embed_tokens.register_forward_hook(lambda _module, _inputs, output: output.to(device))
    for layer in text_encoder.model.layers:
        _visit(layer, device)


def _visit(layer: nn.Module, device: torch.device) -> None:
    """Copy a layer's weights to the device before its forward, and forget the copies after it."""
    if device.type == "cuda":  # pinned memory is copied at the bus's full speed, without waiting
        for parameter in layer.parameters():
            parameter.data = parameter.data.pin_memory()
    at_home: dict[nn.Parameter, Tensor] = {parameter: parameter.data for parameter in layer.parameters()}

    def arrive(_module: nn.Module, _inputs: Any) -> None:
        for parameter, data in at_home.items():
            parameter.data = data.to(device, non_blocking=True)

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        for parameter, data in at_home.items():
            parameter.data = data

    layer.register_forward_pre_hook(arrive)
    layer.register_forward_hook(leave)
