"""Compile every kernel to machine code for real cards, which needs none: python -m tests.acceleration.compile_kernels

Prints a line per kernel: its name, the card's capability, the form of its result. Run without TRITON_INTERPRET.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zturbo.acceleration import triton_kernels as kernels

FORMS = {"none": ("*bf16", None), "int8": ("*i8", "*fp32"), "fp8": ("*fp8e4nv", "*fp32")}
CARDS = {80: ("none", "int8"), 89: ("none", "int8", "fp8"), 90: ("none", "int8", "fp8")}
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
    "int8_product": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP": 8},
}


def build(name: str, card: int, form: str) -> None:
    """Compile one kernel for one card and one form of its result."""
    kernel, (values, scales), constants = getattr(kernels, name), FORMS[form], dict(CONSTANTS[name])
    types = WORKING | {"out": "*bf16"}
    if name in RESULTS:
        result, scale = RESULTS[name]
        constants |= {"SCHEME": form} | ({} if scales else {scale: None})
        types |= {result: values} | ({scale: scales} if scales else {})
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    found = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 8})
    assert found.asm["cubin"]
    print(name, card, form, flush=True)


if __name__ == "__main__":
    for card, forms in CARDS.items():
        for name in CONSTANTS:
            for form in forms if name in RESULTS else ("none",):
                build(name, card, form)
