"""Which plan runs the published 6B on which machine."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zturbo.engine import doctor
from zturbo.engine.engine import LoadOptions
from zturbo.engine.machine import Machine, detect
from zturbo.engine.plan import GIB, ModelSize, choose_dtype, choose_plan
from zturbo.errors import DeviceError, DoesNotFit

SIZE = doctor.published_size()
AMPERE, ADA, TURING = (8, 6), (8, 9), (7, 5)


def card(gib: float, capability: tuple[int, int] = ADA) -> Machine:
    free = int((gib - 0.4) * GIB)  # a desktop takes some of it
    bf16 = capability >= (8, 0)
    return Machine("cuda", f"a card of {gib} GiB", 8, 64 * GIB, 56 * GIB, int(gib * GIB), free, capability, bf16)


def processor(gib: float, bf16: bool = True) -> Machine:
    total, free = int(gib * GIB), int((gib - 1) * GIB)
    return Machine("cpu", "a processor", 8, total, free, total, free, None, bf16)


def summary(machine: Machine) -> tuple[str, str | None, str]:
    plan = choose_plan(machine, SIZE)
    assert plan.device_bytes < machine.device_free
    return plan.dtype, plan.quantization, plan.text_encoder_placement


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (card(80, (9, 0)), ("bfloat16", None, "resident")),
        (card(24), ("bfloat16", None, "resident")),
        (card(16), ("bfloat16", None, "streamed")),
        (card(12), ("bfloat16", "fp8", "streamed")),
        (card(12, AMPERE), ("bfloat16", "int8", "streamed")),
        (card(8, AMPERE), ("bfloat16", "int8", "streamed")),
        (card(8), ("bfloat16", "fp8", "streamed")),
        (card(11, TURING), ("float16", "int8", "streamed")),
        (processor(64), ("bfloat16", None, "resident")),
        (processor(24), ("bfloat16", "int8", "resident")),
        (processor(16), ("bfloat16", "int8", "quantized")),
        (processor(64, bf16=False), ("float32", None, "resident")),
    ],
    ids=str,
)
def test_the_published_model_fits(machine: Machine, expected: tuple[str, str | None, str]) -> None:
    assert summary(machine) == expected


TABLE = {
    "80 GiB card": card(80, (9, 0)),
    "24 GiB card": card(24),
    "16 GiB card": card(16),
    "12 GiB card": card(12),
    "11 GiB card without bf16": card(11, TURING),
    "8 GiB card": card(8, AMPERE),
    "CPU, 32 GiB": processor(32),
    "CPU, 24 GiB": processor(24),
    "CPU, 16 GiB": processor(16),
}


def test_the_documented_table_holds_the_plans_figures() -> None:
    guide = Path(__file__).parents[2] / "docs" / "concepts" / "memory.md"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in guide.read_text("utf-8").splitlines()]
    told = {row[0]: row[2:] for row in rows if row and row[0] in TABLE}
    assert told.keys() == TABLE.keys()
    for name, (needs, host) in told.items():
        plan = choose_plan(TABLE[name], SIZE)
        assert needs.startswith(f"{plan.device_bytes / GIB:.1f} GiB"), name
        assert host == (f"{plan.host_bytes / GIB:.1f} GiB" if plan.host_bytes else ""), name


def test_the_documented_least_memory_is_what_it_takes() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "concepts" / "memory.md").read_text("utf-8")
    for told, machine in (
        ("12.7 GiB free, 14.4", processor(64)),
        ("14.4 without bf16", processor(64, bf16=False)),
        ("7.2 GiB free (7.5", card(64)),
        ("7.5 without fp8", card(64, AMPERE)),
    ):
        assert told in guide
        least = float(told.split(" ")[0])
        choose_plan(replace(machine, device_free=int((least + 0.1) * GIB)), SIZE)
        with pytest.raises(DoesNotFit):
            choose_plan(replace(machine, device_free=int((least - 0.1) * GIB)), SIZE)


@pytest.mark.parametrize(("machine", "width"), [(card(16), 2), (card(11, TURING), 4)], ids=["bf16", "fp32"])
def test_streamed_layers_count_as_the_powers_of_two_that_pinned_memory_comes_in(machine: Machine, width: int) -> None:
    layers, power = 36, 2**27  # Qwen3-4B has 36 layers
    assert power / 2 < SIZE.text_layer < power
    rest = (SIZE.text_encoder - layers * SIZE.text_layer) * width
    assert choose_plan(machine, SIZE).host_bytes == layers * width * power + rest


def test_a_small_card_draws_smaller_pictures() -> None:
    assert choose_plan(card(8), SIZE).max_pixels == 1024 * 1024
    assert choose_plan(card(24), SIZE).max_pixels == 2048 * 2048


@pytest.mark.parametrize("machine", [card(4), processor(8)], ids=str)
def test_what_does_not_fit_says_how_much_it_needs(machine: Machine) -> None:
    with pytest.raises(DoesNotFit, match=r"needs at least \d+\.\d GiB on a .*usable are \d+\.\d GiB") as caught:
        choose_plan(machine, SIZE)
    assert "nano" in caught.value.hint


@given(gib=st.floats(6.5, 200), capability=st.sampled_from([AMPERE, ADA, (9, 0), (12, 0)]))
def test_more_memory_never_makes_a_plan_worse(gib: float, capability: tuple[int, int]) -> None:
    def rank(gib: float) -> int:
        try:
            return choose_plan(card(gib, capability), SIZE).device_bytes
        except DoesNotFit:
            return 0

    assert rank(gib) <= rank(gib * 1.5)


def test_a_wish_is_obeyed() -> None:
    assert choose_plan(card(80), SIZE, quantization="int8").quantization == "int8"
    assert choose_plan(card(80), SIZE, quantization="fp8").quantization == "fp8"
    assert choose_plan(card(80), SIZE, dtype="float16").dtype == "float16"
    with pytest.raises(DoesNotFit):
        choose_plan(card(12), SIZE, quantization="none")


def test_half_precision_keeps_the_encoder_and_the_vae_in_fp32() -> None:
    plan = choose_plan(card(80), SIZE, dtype="float16")
    assert (plan.text_encoder_dtype, plan.vae_dtype) == ("float32", "float32")


@pytest.mark.parametrize(("dtype", "quantization"), [("float8", "auto"), ("auto", "int4"), ("", "auto")])
def test_unknown_names_are_refused(dtype: str, quantization: str) -> None:
    with pytest.raises(DeviceError, match="unknown"):
        choose_plan(card(80), SIZE, dtype, quantization)  # type: ignore[arg-type]


def test_every_choice_has_a_reason() -> None:
    for machine in (card(24), card(11, TURING), processor(24), processor(24, bf16=False)):
        assert choose_dtype(machine)[1]
        plan = choose_plan(machine, replace(SIZE, text_encoder=10**8, text_encoder_wide=0))
        assert plan.dtype_reason
        assert plan.quantization_reason
        assert plan.attention


def test_sizes_are_counted_from_the_configs() -> None:
    assert SIZE.transformer == 6_154_908_736
    assert SIZE.transformer_wide == 6_016_204_800
    assert SIZE.text_encoder == 4_022_468_096
    assert isinstance(SIZE, ModelSize)


def test_this_machine_is_detected() -> None:
    machine = detect("cpu")
    assert 0 < machine.host_free <= machine.host_total
    assert machine.cores >= 1
    assert machine.name
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        detect("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"'cuda' is not available.*\n.*present: .*cpu"):
            detect("cuda")


def test_the_doctor_names_plan_and_next_step() -> None:
    report = doctor.examine("z-image-turbo", LoadOptions(device="cpu"))
    assert "z-image-turbo" in report.text()
    (model,) = report.as_dict()["models"]
    assert model["advice"]
