"""One training in several processes: each works on batches of its own, gradients are averaged after every step.

    torchrun --standalone --nproc-per-node 2 -m nano.transformer ...

On a busy CPU two processes of one thread are much faster than one process of two threads, which waits for its slower
thread at every operation. Started without torchrun, everything here does nothing.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start() -> None:
    """Join the other processes, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """Which process this is, from 0; only process 0 prints and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(model: nn.Module) -> None:
    """Replace the gradients by their mean over all processes; all must have used the same parameters."""
    if not dist.is_initialized():
        return
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share(count: int) -> range:
    """Which of `count` pieces of work this process does; pieces that cost most should come first."""
    return range(rank(), count, dist.get_world_size() if dist.is_initialized() else 1)


def exchange(pieces: list[Tensor]) -> None:
    """Give each process what the others made of their `share` of these pieces; in place."""
    if not dist.is_initialized():
        return
    mine = set(share(len(pieces)))
    for index, piece in enumerate(pieces):
        if index not in mine:
            piece.zero_()
    flat = torch.cat([piece.flatten() for piece in pieces])
    dist.all_reduce(flat)
    for piece, whole in zip(pieces, flat.split([piece.numel() for piece in pieces]), strict=True):
        piece.copy_(whole.view_as(piece))


def agreed(value: float) -> float:
    """What process 0 says the value is: clocks differ, decisions must not."""
    if not dist.is_initialized():
        return value
    said = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(said, src=0)
    return float(said)
