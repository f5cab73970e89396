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
    """Copy a layer's weights to the device before its forward, and forget the copy after it."""
    home = _one_buffer(layer, pinned=device.type == "cuda")
    parts = [(parameter, parameter.data) for parameter in layer.parameters()]

    def arrive(_module: nn.Module, _inputs: Any) -> None:
        visitor = home.to(device, non_blocking=True, copy=True)
        for (parameter, at_home), part in zip(parts, visitor.split([data.numel() for _, data in parts]), strict=True):
            parameter.data = part.view(at_home.shape)

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        for parameter, at_home in parts:
            parameter.data = at_home

    layer.register_forward_pre_hook(arrive)
    layer.register_forward_hook(leave, always_call=True)  # where memory runs out, it must not keep the copy as well


def _one_buffer(layer: nn.Module, pinned: bool) -> Tensor:
    """Move a layer's weights into one flat tensor, which one copy can carry; the parameters become views of it.

    Pinned memory is copied at the bus's full speed. PyTorch rounds each pinned block up to a power of two, which
    many small blocks would pay many times.
    """
    parameters = list(layer.parameters())
    size = sum(parameter.numel() for parameter in parameters)
    buffer = torch.empty(size, dtype=parameters[0].dtype, pin_memory=pinned)
    for parameter, part in zip(parameters, buffer.split([p.numel() for p in parameters]), strict=True):
        part.copy_(parameter.data.flatten())
        parameter.data = part.view(parameter.shape)
    return buffer
