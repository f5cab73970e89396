"""The C kernels beside PyTorch: products, blocks, whole forwards; their build, and what happens without one."""

import copy
import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from zturbo.acceleration import cpu, native, native_decoder
from zturbo.acceleration.levels import Levels
from zturbo.acceleration.native import KINDS, Kind, Unavailable
from zturbo.acceleration.native_decoder import nativize_decoder
from zturbo.engine.engine import Engine, LoadOptions
from zturbo.engine.lanes import Lanes
from zturbo.engine.pipeline import Pipeline
from zturbo.engine.plan import DTYPES, values_per_pixel
from zturbo.models.configs import TransformerConfig, VaeConfig
from zturbo.models.transformer import Block, ZImageTransformer
from zturbo.models.vae import Decoder

ERRORS: dict[Kind, float] = {"fp32": 2e-6, "int16": 2e-3, "bf16": 1e-2, "int8": 3e-2}
"""Relative error of a block against fp32."""
DECODER_ERRORS: dict[Kind, float] = {"fp32": 2e-5, "int16": 1e-2, "bf16": 2e-2, "int8": 1e-1}
SMALL = {
    "all_patch_size": [2], "all_f_patch_size": [1], "qk_norm": True, "in_channels": 4, "dim": 96, "n_layers": 2,
    "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 3, "norm_eps": 1e-5, "cap_feat_dim": 24, "rope_theta": 256.0,
    "t_scale": 1000.0, "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512],
}  # fmt: skip
LARGE = SMALL | {"dim": 528, "n_heads": 11, "n_kv_heads": 11, "axes_dims": [16, 16, 16], "n_layers": 1}
"""Heads of 48 channels, and more than one of the shorter passes over k (fp32, int16)."""


WIDE = SMALL | {"dim": 800, "n_heads": 10, "n_kv_heads": 10, "axes_dims": [16, 32, 32], "n_layers": 1}
"""More than one of the longest passes over k, in the feed-forward's second product."""


DEEP = SMALL | {"dim": 1248, "n_heads": 13, "n_kv_heads": 13, "axes_dims": [16, 40, 40], "n_layers": 1}
"""Rows of whole matrix tiles, in more than one piece for the first cache, and the second product's for the second."""


pytestmark = pytest.mark.usefixtures("native_kernels")


def transformer(members: dict[str, object]) -> ZImageTransformer:
    torch.manual_seed(0)
    made = ZImageTransformer(TransformerConfig.from_dict(members, "test")).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    return made


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def distance(kind: Kind, members: dict[str, object], slots: int, rows: int) -> float:
    """Of two pictures' rows after a native block from those after the eager one."""
    model = transformer(members)
    block = model.layers[0]
    assert isinstance(block, Block)
    dim, head = model.config.dim, model.config.head_dim
    x, modulation = torch.randn(2, slots, dim), torch.randn(2, 4, dim)
    angles = torch.rand(slots, head // 2) * 6
    rope = torch.stack((angles.cos(), angles.sin()), dim=-1)
    expected = block(x, rope, modulation, rows)
    cpu.nativize(model, kind)
    found = block(x, rope, modulation, rows)
    assert found.shape == expected.shape
    return off(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("members", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("slots", "rows"), [(1, 1), (7, 7), (32, 5), (61, 61), (333, 300), (1099, 30)])
def test_a_block_computes_what_the_eager_one_does(
    kind: Kind, members: dict[str, object], slots: int, rows: int
) -> None:
    assert distance(kind, members, slots, rows) < ERRORS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_several_passes(kind: Kind) -> None:
    assert TransformerConfig.from_dict(WIDE, "test").hidden_dim > native.PASS
    test_a_block_computes_what_the_eager_one_does(kind, WIDE, 9, 9)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("slots", [16, 17, 61, 203])
def test_long_rows_in_squares_of_tiles(kind: Kind, slots: int) -> None:
    """So wide, 8 bits alone are off by 3.1e-2; sums of another row or column would be by more than 1e-1."""
    assert distance(kind, DEEP, slots, slots) < {"bf16": 1e-2, "int8": 3.5e-2}[kind]


VAES = {
    "nano": {"block_out_channels": [16, 16, 32, 64, 128], "mid_block_add_attention": False, "norm_num_groups": 4},
    "published": {"block_out_channels": [32, 32, 64], "mid_block_add_attention": True, "norm_num_groups": 8},
    "wide": {"block_out_channels": [48, 208], "mid_block_add_attention": True, "norm_num_groups": 16},
}  # fmt: skip


def decoder(name: str) -> Decoder:
    members = VAES[name] | {
        "in_channels": 3, "out_channels": 3, "latent_channels": 16, "layers_per_block": 1, "act_fn": "silu",
        "scaling_factor": 1.0, "shift_factor": 0.0, "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    torch.manual_seed(0)
    made = Decoder(VaeConfig.from_dict(members, "test")).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (17, 16), (9, 35)])
def test_a_decoder_computes_what_the_eager_one_does(kind: Kind, name: str, height: int, width: int) -> None:
    model = decoder(name)
    latents = torch.randn(2, 16, height, width)
    expected = model(latents)
    nativize_decoder(model, kind)
    found = model(latents)
    assert found.shape == expected.shape
    assert off(found, expected) < DECODER_ERRORS[kind]
    assert torch.equal(found[1:], model(latents[1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_takes_loud_values_and_hides_none_that_is_not_finite(kind: Kind) -> None:
    model = decoder("nano")
    for norm in (one for one in model.modules() if isinstance(one, torch.nn.GroupNorm)):
        norm.weight.mul_(50)
    latents = torch.randn(1, 16, 9, 7)
    expected = model(latents)
    nativize_decoder(model, kind)
    assert off(model(latents), expected) < 2 * DECODER_ERRORS[kind]
    for value in (torch.nan, torch.inf):
        latents[0, 0, 0, 0] = value
        assert not model(latents).isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_does_not_depend_on_the_threads(kind: Kind) -> None:
    model = decoder("nano")
    nativize_decoder(model, kind)
    latents, before = torch.randn(1, 16, 9, 11), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(model(latents))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_working_memory_is_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[torch.Tensor]()
    monkeypatch.setattr(native_decoder, "_kept", kept)
    model, small, large = decoder("nano"), torch.randn(1, 16, 4, 5), torch.randn(1, 16, 9, 6)
    nativize_decoder(model, "fp32")
    first = model(small)
    (memory,) = kept
    assert memory.nbytes == native_decoder.working_bytes(model, 4 * 5)
    assert torch.equal(model(small), first)
    assert kept == [memory]
    model(large)
    (larger,) = kept
    assert larger.nbytes > memory.nbytes
    assert torch.equal(model(small), first)
    monkeypatch.setattr(native_decoder, "MOST_KEPT", 0)
    assert torch.equal(model(small), first)
    assert kept == []


def test_pytorch_has_one_thread_where_the_kernels_have_all() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with native.only_kernels():
            assert (torch.get_num_threads(), native.threads()) == (1, 3)
            with native.only_kernels():
                assert native.threads() == 3
            assert native.threads() == 3
        assert (torch.get_num_threads(), native.threads()) == (3, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("slots", [32, 96, 512])
def test_a_forward_computes_what_the_eager_one_does(slots: int) -> None:
    model = transformer(SMALL)
    latents, embeds = torch.randn(1, 4, 10, 14), torch.randn(1, slots - 3, 24)
    modulation = model.modulation(torch.tensor([0.3]))
    expected = model(latents, model.embed_caption(embeds), modulation)
    cpu.nativize(model, "fp32")
    assert off(model(latents, model.embed_caption(embeds), modulation), expected) < 1e-5


def test_hidden_values_may_be_scaled() -> None:
    model = transformer(SMALL)
    for module in model.modules():
        if isinstance(module, Block):
            module.feed_forward.hidden_scale = 0.125
    arguments = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 96), model.modulation(torch.tensor([0.3]))
    expected = model(*arguments)
    cpu.nativize(model, "fp32")
    assert off(model(*arguments), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_do_not_depend_on_the_threads(kind: Kind) -> None:
    model = transformer(LARGE)
    cpu.nativize(model, kind)
    arguments = torch.randn(1, 4, 36, 22), torch.randn(1, 64, 528), model.modulation(torch.tensor([0.3]))
    rope, before = model.rope(18, 11, 64, torch.device("cpu")), torch.get_num_threads()
    results, wholes = [], []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            x = model.layers[0](torch.ones(1, 7 * 32 + 64, 528).cumsum(1).sin(), rope, arguments[2].blocks[0])
            results.append(x)
            wholes.append(model(*arguments))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert all(torch.equal(wholes[0], other) for other in wholes[1:])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_computes_with_its_own_blocks(duplicate: Callable[[ZImageTransformer], ZImageTransformer]) -> None:
    def without_the_first_layer(model: ZImageTransformer) -> ZImageTransformer:
        other = duplicate(model)
        other._modules = dict(other._modules)
        other.layers = other.layers[1:]
        return other

    model = transformer(SMALL)
    latents, caption = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 96)
    whole, fewer = model.modulation(torch.tensor([0.3])), without_the_first_layer(model).modulation(torch.tensor([0.3]))
    expected = [model(latents, caption, whole), without_the_first_layer(model)(latents, caption, fewer)]
    cpu.nativize(model, "fp32")
    assert off(model(latents, caption, whole), expected[0]) < 1e-5
    assert off(without_the_first_layer(model)(latents, caption, fewer), expected[1]) < 1e-5
    assert off(model(latents, caption, whole), expected[0]) < 1e-5


def test_values_that_are_not_numbers_are_not_hidden() -> None:
    model = transformer(SMALL)
    cpu.nativize(model, "fp32")
    latents = torch.randn(1, 4, 8, 8)
    latents[0, 0, 0, 0] = torch.nan
    found = model(latents, torch.randn(1, 32, 96), model.modulation(torch.tensor([0.3])))
    assert bool(found.isnan().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_kind_of_product_hides_a_value_that_is_not_finite(kind: Kind, value: float) -> None:
    model = transformer(SMALL)
    cpu.nativize(model, kind)
    x, modulation, rope = torch.randn(1, 9, 96), torch.randn(1, 4, 96), torch.rand(9, 16, 2)
    assert model.layers[0](x, rope, modulation).isfinite().all()
    modulation[0, 2, 5] = value  # what the feed-forward reads; the residual beside it stays finite
    assert not model.layers[0](x, rope, modulation).isfinite().any()


def test_levels_say_which_kernels_draw(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    assert str(engine.levels["none"]).startswith("native blocks, native decoder (+")
    assert str(engine.levels["regular"]).startswith("native blocks, native decoder, integer products")
    if cpu.integer_kind() == "int8":  # this decoder's random weights are no match for eight bits; its trial says so
        assert "; no integer decoder: their result is off by" in str(engine.levels["regular"])
    else:
        assert ", integer decoder (+" in str(engine.levels["regular"])


def test_down_projections_have_8_bits_at_high_only(tiny_folder: Path) -> None:
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))

    def kinds(level: str) -> set[str]:
        blocks = [
            one for one in engine.levels[level].pipeline.transformer.modules() if isinstance(one, cpu.NativeBlock)
        ]
        return {kind for block in blocks for kind in (block.native.w13.kind, block.native.w2.kind)}

    assert kinds("none") == {"fp32"}
    if cpu.integer_kind() == "int8":
        assert (kinds("high"), kinds("regular")) == ({"int8"}, {"int8", "fp32"})
    else:
        assert (kinds("high"), kinds("regular")) == ({"int16"}, {"int16"})
        assert "no 8-bit down projections: they are in 12 bits" in str(engine.levels["high"])


def test_a_pass_after_a_forward_is_seen_by_the_next(tiny_folder: Path) -> None:
    pipeline = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline.fork("regular")
    cpu.nativize(pipeline.transformer, "int8", "fp32")
    model = pipeline.transformer
    channels, width = model.config.in_channels, model.config.dim
    arguments = torch.randn(1, channels, 8, 8), torch.randn(1, 32, width), model.modulation(torch.tensor([0.3]))
    before, earlier = model(*arguments), list[native.Packed]()
    for block in (one for one in model.modules() if isinstance(one, cpu.NativeBlock)):
        earlier.append(block.native.w2)  # its memory stays as it is
        block.feed_forward.w2.weight = torch.nn.Parameter(torch.zeros_like(block.feed_forward.w2.weight))
    cpu.to_integer_down(pipeline)
    assert off(model(*arguments), before) > 1e-2


def test_a_pass_goes_without_the_one_that_it_follows(tiny_folder: Path) -> None:
    pipeline = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline
    high = Levels(pipeline, spare_bytes=cpu.integer_down_bytes(pipeline) + 1)["high"]
    assert "integer products" in high.left_out
    assert high.left_out["8-bit down projections"] == "only with integer products"
    assert high.left_out["integer decoder"] == "only with native decoder"


def test_forwards_leave_pytorch_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the kernels all: what is seen where the network and the decoder are at work."""
    seen, before = list[tuple[int, int]](), torch.get_num_threads()
    model, painter = transformer(SMALL), decoder("nano")
    cpu.nativize(model, "fp32")
    nativize_decoder(painter, "fp32")
    for of, name in ((cpu.NativeTransformer, "predict"), (native_decoder.NativeDecoder, "_picture")):
        whole = getattr(of, name)

        def look(*arguments: object, whole: Callable[..., object] = whole) -> object:
            seen.append((torch.get_num_threads(), native.threads()))
            return whole(*arguments)

        monkeypatch.setattr(of, name, look)
    try:
        torch.set_num_threads(3)
        model(torch.randn(1, 4, 8, 8), torch.randn(1, 32, 96), model.modulation(torch.tensor([0.3])))
        painter(torch.randn(1, 16, 4, 5))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, 3), (1, 3)]


def test_a_model_that_does_not_fit_twice_is_told(tiny_folder: Path) -> None:
    pipeline = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32")).pipeline
    reason = Levels(pipeline, spare_bytes=0)["none"].left_out["native blocks"]
    assert reason.startswith("it needs ")
    assert cpu.native_bytes(pipeline) == sum(
        buffer.nbytes
        for name, buffer in Levels(pipeline, 2**30)["none"].pipeline.transformer.named_buffers()
        if name.endswith("panels")
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tile", [None, 64])
def test_the_largest_picture_fits_in_what_the_plan_and_the_decoder_count(
    nano: Pipeline, monkeypatch: pytest.MonkeyPatch, dtype: str, tile: int | None
) -> None:
    """On every lane: a decoding that rests for another request keeps its memory."""
    monkeypatch.setattr(nano, "vae_dtype", DTYPES[dtype])
    monkeypatch.setattr(nano, "tile", tile)
    monkeypatch.setattr(nano, "lanes", Lanes(3))
    decoder, config = nano.vae.decoder, nano.vae.config
    side = tile or 2048 // config.factor
    planned = (side * config.factor) ** 2 * values_per_pixel(config) * DTYPES[dtype].itemsize
    weights = native_decoder.values(decoder) * native.STORAGE[cpu.exact_kind(DTYPES[dtype])].itemsize
    beyond = native_decoder.working_bytes(decoder, side**2) - planned
    assert (beyond > 0) is (dtype == "bfloat16")
    assert cpu.decoder_bytes(nano) == weights + 3 * max(0, beyond)


@pytest.fixture(scope="module")
def nano() -> Pipeline:
    return Engine.load("nano", LoadOptions(device="cpu")).pipeline


def test_without_a_build_the_reason_is_told(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "target", lambda: tmp_path / "none.so")
    native.library.cache_clear()
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    assert "no native blocks: they are not built yet" in str(engine.levels["none"])
    (tmp_path / "none.so").write_bytes(b"not a library")
    with pytest.raises(Unavailable, match="does not load"):
        native.library()


def test_a_build_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.target.cache_clear()
    try:
        native.build()
        made = native.target()
        assert made.parent == tmp_path / "zturbo" / "native"
        before = made.stat().st_mtime_ns
        native.build()
        assert made.stat().st_mtime_ns == before
        assert [path.name for path in made.parent.iterdir()] == [made.name]
        assert isinstance(native.library(), ctypes.CDLL)
    finally:
        monkeypatch.undo()
        native.target.cache_clear()
        native.library.cache_clear()


def test_a_build_that_a_power_cut_left_empty_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = native.target()
    native.build()
    (kept := tmp_path / made.name).touch()
    monkeypatch.setattr(native, "target", lambda: kept)
    monkeypatch.setattr(native, "_compile", lambda path: shutil.copy(made, path))
    native.build()
    assert kept.read_bytes() == made.read_bytes()


def test_the_first_of_two_builds_keeps_its_name(tmp_path: Path) -> None:
    """Another machine that shares the folder may have mapped it, and would lose its pages."""
    first, second, path = tmp_path / "first", tmp_path / "second", tmp_path / "kernels.so"
    first.write_text("first")
    second.write_text("second")
    native._publish(first, path)
    native._publish(second, path)
    assert path.read_text() == "first"


def test_a_compiler_may_come_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -m64")
    assert native.compiler() == (shutil.which("cc"), "-m64")
    for broken in ("no-such-compiler -m64", "'cc -m64"):
        monkeypatch.setenv("CC", broken)
        assert native.compiler() is None


def test_without_a_home_folder_only_the_kernels_are_left_out(tiny_folder: Path, homeless: None) -> None:
    caches = (native.target, native.library)
    for one in caches:
        one.cache_clear()
    try:
        engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32", build=True))
        assert "no native blocks: this user has no home folder" in str(engine.levels["none"])
    finally:
        for one in caches:
            one.cache_clear()


def test_a_folder_that_may_not_be_entered_leaves_only_the_kernels_out(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(type(tmp_path)):  # type: ignore[misc]  # permissions would not hold for a test that root runs
        def exists(self, **_: bool) -> bool:
            raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(native, "target", lambda: Closed(tmp_path / "none.so"))
    native.library.cache_clear()
    with pytest.raises(Unavailable, match=r"folder of their builds cannot be used: .*denied"):
        native.build()
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32", build=True))
    assert "no native blocks: the folder of their builds cannot be used" in str(engine.levels["none"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(native, "target", lambda: tmp_path / "file" / "kernels.so")
    with pytest.raises(Unavailable, match="folder of their builds cannot be used"):
        native.build()


def test_no_compiler_a_failing_one_and_another_processor_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        for program, reason in (("no-such-compiler", "no C compiler"), ("false", "the compiler fails: no message")):
            monkeypatch.setenv("CC", program)
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
            native.target.cache_clear()
            with pytest.raises(Unavailable, match=reason):
                native.build()
        monkeypatch.setattr(native, "features", frozenset)
        native.target.cache_clear()
        with pytest.raises(Unavailable, match="AVX2"):
            native.build()
    finally:
        monkeypatch.undo()
        native.target.cache_clear()


@pytest.mark.parametrize(
    ("script", "reason"), [("no program", "Exec format error"), ("#!/bin/sh\nexec sleep 60\n", "timed out")]
)
def test_a_compiler_that_cannot_be_run_leaves_only_the_kernels_out(
    script: str, reason: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cc"
    program.write_text(script)
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    monkeypatch.setattr(native, "VERSION_TIMEOUT_S", 0.1)
    caches = (native.target, native.library)
    try:
        for one in caches:
            one.cache_clear()
        engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32", build=True))
        left_out = engine.levels["none"].left_out
        assert left_out["native blocks"].startswith("the compiler fails: ")
        assert reason in left_out["native blocks"]
    finally:
        monkeypatch.undo()
        for one in caches:
            one.cache_clear()


def test_kernels_that_compute_something_else_are_left_out(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "interleave", lambda w13: native.interleave(w13).flip(0))
    engine = Engine.load(str(tiny_folder), LoadOptions(device="cpu", dtype="float32"))
    assert "no native blocks: their result is off by " in str(engine.levels["none"])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels with matrix tiles, which are computed in plain C."""
    if "avx512bw" not in native.features():
        pytest.skip("this processor has no AVX-512, which the code around the tiles is written in")
    program, made = native.compiler(), tmp_path_factory.mktemp("tiles") / "tiles.so"
    assert program is not None
    general = [flag for flag in native.FLAGS if flag != "-march=native"]
    front = str(Path(__file__).with_name("matrix_tiles.h"))
    command = [*program, *general, "-mfma", "-mavx512f", "-mavx512bw", "-Wall", "-Wextra", "-Werror", "-include", front]
    subprocess.run([*command, str(native.SOURCE), "-o", str(made), "-lm"], check=True)
    return ctypes.CDLL(str(made))


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("members", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("slots", "rows"), [(1, 1), (7, 7), (61, 61), (157, 150)])
def test_a_block_in_matrix_tiles_computes_what_the_eager_one_does(
    kind: Kind, members: dict[str, object], slots: int, rows: int, tiles: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: tiles)
    test_a_block_computes_what_the_eager_one_does(kind, members, slots, rows)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_sums_of_several_passes_in_matrix_tiles(
    kind: Kind, tiles: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: tiles)
    test_sums_of_several_passes(kind)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("slots", [17, 61])
def test_long_rows_in_squares_of_emulated_tiles(
    kind: Kind, slots: int, tiles: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: tiles)
    test_long_rows_in_squares_of_tiles(kind, slots)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (3, 18)])
def test_a_decoder_in_matrix_tiles_computes_what_the_eager_one_does(
    kind: Kind, name: str, height: int, width: int, tiles: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: tiles)
    test_a_decoder_computes_what_the_eager_one_does(kind, name, height, width)


AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vnni", "-mavx512bf16")


@pytest.mark.parametrize("flags", [(), AVX512, (*AVX512, "-mamx-tile", "-mamx-bf16", "-mamx-int8")])
def test_every_instruction_set_compiles(tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = native.compiler()
    assert program is not None
    assert shutil.which(program[0])
    general = [flag for flag in native.FLAGS if flag != "-march=native"]
    command = [*program, *general, "-O1", "-mavx2", "-mfma", *flags, "-Wall", "-Wextra", "-Werror", str(native.SOURCE)]
    done = subprocess.run([*command, "-o", str(tmp_path / "all.so")], capture_output=True, text=True, check=False)
    if "unrecognized" in done.stderr:
        pytest.skip(f"this compiler does not know {flags}")
    assert done.returncode == 0, done.stderr
