"""Compile every kernel to machine code for real cards, which needs none: python -m tests.acceleration.compile_kernels

Prints a line per kernel: its name, the card's capability, the form of its result. Run without TRITON_INTERPRET.
"""

import re
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zturbo.acceleration import fused
from zturbo.acceleration import triton_kernels as kernels

FORMS = {"none": ("*bf16", None), "fp16": ("*fp16", None), "int8": ("*i8", "*fp32"), "fp8": ("*fp8e4nv", "*fp32")}
CARDS = {80: ("none", "int8"), 89: ("none", "int8", "fp8"), 90: ("none", "fp16", "int8", "fp8")}
PRODUCT = ("none", "uneven")
"""Forms of the int8 product: where tiles divide the depth, and where not."""
SHARED_KIB = {80: 163, 89: 99, 90: 227}
"""Shared memory that one block of threads may have: CUDA's programming guide, table of technical specifications."""
TOKENS = 4224
"""Of a 1024x1024 picture."""
DIM, HIDDEN = 4096, 16384
"""Powers of two from the published widths on."""

WORKING = {"x": "*bf16", "y": "*bf16", "gate": "*bf16", "scale": "*bf16", "next_scale": "*bf16", "gate_value": "*bf16",
           "qkv": "*bf16", "weight_q": "*bf16", "weight_k": "*bf16", "rope": "*fp32", "eps": "fp32",
           "next_eps": "fp32", "hidden_scale": "fp32", "left": "*i8", "right": "*i8", "left_scale": "*fp32",
           "right_scale": "*fp32"}  # fmt: skip
RESULTS = {"norm_scale": ("out", "out_scale"), "add_gated_norm": ("next_out", "next_out_scale"),
           "silu_product": ("out", "out_scale"), "quantize": ("out", "out_scale")}  # fmt: skip
CONSTANTS: dict[str, dict[str, Any]] = {
    "norm_scale": {"BLOCK": DIM},
    "add_gated_norm": {"BLOCK": DIM, "NEXT": True},
    "silu_product": {"BLOCK": HIDDEN},
    "quantize": {"BLOCK": DIM},
    "norm_and_rotate": {"HEADS": 30, "DIM": 128, "HEADS_BLOCK": 32, "DIM_BLOCK": 128},
}


def constants_of(name: str, card: int, form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A kernel's constants, and the compiler's options."""
    if name != "int8_product":
        return dict(CONSTANTS[name]), fused._as_written(CONSTANTS[name].get("BLOCK", DIM))
    with patch("torch.cuda.get_device_capability", return_value=divmod(card, 10)):
        tiles = fused._tiles(cast(Tensor, SimpleNamespace(device=torch.device("cuda"), shape=(TOKENS, DIM))))
    options = {option: tiles.pop(option) for option in ("num_warps", "num_stages")}
    return tiles | {"EVEN_K": form == "none"}, options


def build(name: str, card: int, form: str) -> None:
    """Compile one kernel for one card and one form of its result."""
    kernel, (constants, options) = getattr(kernels, name), constants_of(name, card, form)
    types = WORKING | {"out": "*bf16"}
    if form == "fp16":
        types = {of: dtype.replace("*bf16", "*fp16") for of, dtype in types.items()}
    if name in RESULTS:
        (result, scale), (values, scales) = RESULTS[name], FORMS[form]
        constants |= {"SCHEME": form if scales else "none"} | ({} if scales else {scale: None})
        types |= {result: values} | ({scale: scales} if scales else {})
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
    # As in a launch: addresses and sizes are multiples of 16, or the loads would not be pipelined.
    even = {
        (i,): [["tt.divisibility", 16]] for i, of in enumerate(signature.values()) if of not in ("constexpr", "fp32")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=even)
    found = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
    assert found.asm["cubin"]
    assert found.metadata.shared <= SHARED_KIB[card] * 1024
    # A product that is added before it was rounded is another number than eager's. Older cards multiply and add bf16 by
    # such instructions alone, with a neutral third part.
    if card >= 90 and name != "int8_product":
        assert not re.search(r"\bfma\.rn\.b?f16", found.asm["ptx"]), "fused multiply-add"
    print(name, card, form, flush=True)


if __name__ == "__main__":
    for card, forms in CARDS.items():
        for name in (*CONSTANTS, "int8_product"):
            for form in forms if name in RESULTS else PRODUCT if name == "int8_product" else ("none",):
                build(name, card, form)
