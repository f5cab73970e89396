"""GGUF: every type that the gguf package decodes, whole models, and hostile headers."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from tests.weights import models
from zturbo.errors import ConfigError, WeightsError
from zturbo.models.configs import TransformerConfig
from zturbo.weights import gguf_file, published
from zturbo.weights.checkpoint import open_checkpoint, open_text_encoder
from zturbo.weights.gguf_file import GgufFile
from zturbo.weights.names import transformer_names

WRITABLE = (Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
"""Types that the package can also write."""

BLOCK_ONLY = (
    Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS,
    Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_NL, Kind.IQ4_XS, Kind.TQ1_0, Kind.TQ2_0,
)  # fmt: skip


def write(
    path: Path,
    tensors: Mapping[str, tuple[np.ndarray[Any, Any], Kind]],
    architecture: str | None = "lumina2",
    add: Callable[[Any], None] | None = None,
) -> Path:
    """Write stored bytes as they are; `architecture` None leaves the field out, as some converters do."""
    writer = gguf.GGUFWriter(path, architecture or "")
    if architecture is None:
        writer.kv_data = [{}]
    if add:
        add(writer)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_as(tensor: Tensor, kind: Kind) -> tuple[np.ndarray[Any, Any], Kind]:
    """As converters do: one-dimensional and ill-fitting tensors stay in F32 or F16."""
    values = tensor.float().numpy()
    if values.ndim == 1:
        return values, Kind.F32
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = Kind.F16
    return gguf.quantize(values, kind), kind


def meant(values: np.ndarray[Any, Any], kind: Kind) -> Tensor:
    return torch.from_numpy(np.array(gguf.dequantize(values, kind), dtype=np.float32))


@pytest.mark.parametrize(
    ("kind", "architecture"), [*((kind, "lumina2") for kind in WRITABLE), (Kind.Q8_0, None)], ids=str
)
def test_a_transformer(tmp_path: Path, kind: Kind, architecture: str | None) -> None:
    """Comfy names, pad tokens without their leading axis, types mixed as in the published files."""
    config, state = models.transformer()
    stored = {}
    for name, tensor in models.comfy(state).items():
        flat = tensor.flatten() if name.endswith("pad_token") else tensor
        stored[name] = (
            (gguf.quantize(flat.numpy(), Kind.BF16), Kind.BF16) if flat is not tensor else stored_as(tensor, kind)
        )
    path = write(tmp_path / "model.gguf", stored, architecture)

    component = open_checkpoint(path).transformer

    assert component.config == config
    values = {name: meant(*pair) for name, pair in stored.items()}
    ours = component.table.placements
    expected = {place.parameter: torch.empty(0) for place in ours.values()}
    loaded = models.load_transformer(component)
    assert loaded.keys() == expected.keys()
    for name, place in ours.items():
        got = loaded[place.parameter][place.first_row : place.rows.stop]
        assert torch.equal(got, values[name].reshape(got.shape)), name
    if kind == Kind.F32:
        exact = models.fused_transformer({n: t.bfloat16().float() if "pad" in n else t for n, t in state.items()})
        models.assert_same(loaded, exact)
    assert loaded["cap_pad_token"].shape == (1, config.dim)


def test_a_text_encoder_with_llama_cpp_names(tmp_path: Path) -> None:
    config, state = models.text_encoder()
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    stored = {theirs.get_name(name, (".weight",)): stored_as(t, Kind.Q8_0) for name, t in state.items()}
    stored["output.weight"] = stored["token_embd.weight"]  # some files repeat the tied embedding

    def describe(writer: Any) -> None:
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_token_list([f"token {i}" for i in range(1000)])  # walked, not kept
        writer.add_token_scores([0.5] * 1000)

    path = write(tmp_path / "qwen.gguf", stored, "qwen3", describe)
    component = open_text_encoder(path)
    assert component.config == config
    assert GgufFile(path).metadata["tokenizer.ggml.tokens"] is None
    expected = {name: meant(*stored[theirs.get_name(name, (".weight",))]) for name in state}
    models.assert_same(models.load_text_encoder(component), models.fused_text_encoder(expected))

    with pytest.raises(ConfigError, match="'hidden_size' is missing"):
        open_text_encoder(write(tmp_path / "bare.gguf", stored, "qwen3"))
    with pytest.raises(WeightsError, match="architecture qwen3"):
        open_text_encoder(write(tmp_path / "other.gguf", stored, "qwen2", describe))


def random_blocks(kind: Kind, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Stored bytes of any content whose halves are finite as fp16."""
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    shape = (rows, columns // block_size * type_size)
    raw = np.random.default_rng(int(kind)).integers(0, 256, shape, dtype=np.uint8)
    return raw & 0xBB  # clears a bit of every fp16 exponent, high byte or low: no infinity, no NaN


@pytest.mark.parametrize("kind", BLOCK_ONLY, ids=lambda kind: kind.name)
def test_every_block_type_is_decoded_in_pieces(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = random_blocks(kind, 7, 1024)
    path = write(tmp_path / "f.gguf", {"x": (stored, kind)})
    expected = meant(stored, kind)
    assert torch.isfinite(expected).all()
    assert torch.unique(expected).numel() > 2
    ((_, whole),) = GgufFile(path).tensors(frozenset({"x"}), torch.float32)
    monkeypatch.setattr(gguf_file, "ELEMENTS_AT_ONCE", 768)  # not a divisor of the row
    ((_, pieces),) = GgufFile(path).tensors(frozenset({"x"}), torch.float32)
    assert torch.equal(whole, expected.reshape(7, 1024))
    assert torch.equal(pieces, whole)


def test_all_types_in_circulation_can_be_decoded() -> None:
    known = {block.name for block in gguf_file._blocks().values()}
    assert known >= {kind.name for kind in (*WRITABLE, *BLOCK_ONLY)}
    assert "Q8_1" not in known  # only ever an intermediate in memory


def test_q4_k_against_a_decoder_written_from_its_layout(tmp_path: Path) -> None:
    """256 values: fp16 d and dmin, eight 6-bit scales and mins in 12 bytes, then 128 bytes of nibbles."""
    stored = random_blocks(Kind.Q4_K, 1, 256)[0]
    d, dmin = (float(x) for x in stored[:4].view(np.float16))
    packed, nibbles = [int(b) for b in stored[4:16]], stored[16:]
    expected = []
    for group in range(8):
        if group < 4:
            scale, least = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4)
            least = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4)
        for i in range(32):
            byte = int(nibbles[group // 2 * 32 + i])
            expected.append(d * scale * (byte >> 4 if group % 2 else byte & 15) - dmin * least)
    path = write(tmp_path / "f.gguf", {"x": (stored[None], Kind.Q4_K)})
    ((_, got),) = GgufFile(path).tensors(frozenset({"x"}), torch.float32)
    torch.testing.assert_close(got[0], torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_shapes_that_comfyui_gguf_kept_beside_the_data(tmp_path: Path) -> None:
    values = np.arange(96, dtype=np.float32).reshape(3, 32)
    path = write(
        tmp_path / "f.gguf",
        {"x": (values, Kind.F32)},
        add=lambda writer: writer.add_array("comfy.gguf.orig_shape.x", [4, 24]),
    )
    ((_, got),) = GgufFile(path).tensors(frozenset({"x"}), torch.float32)
    assert torch.equal(got, torch.arange(96.0).reshape(4, 24))
    path = write(
        tmp_path / "g.gguf",
        {"x": (values, Kind.F32)},
        add=lambda writer: writer.add_array("comfy.gguf.orig_shape.x", [4, 25]),
    )
    with pytest.raises(WeightsError, match="original shape"):
        GgufFile(path)


def test_the_published_6b_opens_from_its_header(tmp_path: Path) -> None:
    """453 tensors as a Q4_K_M file has them, over a hole instead of data."""
    config = TransformerConfig.from_dict(published.TRANSFORMER, "published")
    infos, position = [], 0
    for name, place in transformer_names(config, "comfy").placements.items():
        shape = place.shape[1:] if name.endswith("pad_token") else place.shape
        kind = Kind.F32 if len(shape) == 1 else Kind.F16 if shape[-1] % 256 else Kind.Q4_K
        infos.append(info(name, shape[::-1], int(kind), position))
        block, size = gguf.GGML_QUANT_SIZES[kind]
        position += -(-(torch.Size(shape).numel() // block * size) // 32) * 32
    path = tmp_path / "z_image_turbo-Q4_K_M.gguf"
    path.write_bytes(raw([pair("general.architecture", 8, text("lumina2"))], infos, b""))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + position)
    component = open_checkpoint(path).transformer
    assert component.config == config
    assert len(component.table.placements) == 453
    assert 3.4e9 < path.stat().st_size < 3.6e9


# --- hostile -------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def raw(keys: list[bytes], infos: list[bytes], data: bytes = b"\0" * 128, **changes: int) -> bytes:
    start = {"version": 3, "tensors": len(infos), "pairs": len(keys)} | changes
    head = b"GGUF" + struct.pack("<IQQ", start["version"], start["tensors"], start["pairs"])
    body = head + b"".join(keys) + b"".join(infos)
    return body + b"\0" * (-len(body) % 32) + data


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (raw([], [info("x")], version=1), "version 1 GGUF"),
        (raw([], [info("x")], version=3 << 24), "big-endian"),
        (raw([], [info("x")], tensors=HUGE), "announces"),
        (raw([], [info("x")], pairs=HUGE), "announces"),
        (raw([], [info("x")], tensors=1000), "gives '' 0 axes"),
        (raw([pair("k", 8, struct.pack("<Q", HUGE))], []), "beyond"),
        (raw([struct.pack("<Q", HUGE)], []), "beyond"),
        (raw([pair("k", 9, struct.pack("<IQ", 0, HUGE))], []), "beyond"),
        (raw([pair("k", 9, struct.pack("<IQ", 8, HUGE))], []), "beyond"),
        (raw([pair("k", 9, struct.pack("<IQ", 9, 1))], []), "array of type 9"),
        (raw([pair("k", 77, b"")], []), "unknown type 77"),
        (raw([pair("k", 0, b"\0"), pair("k", 0, b"\0")], []), "'k' twice"),
        (raw([pair("general.alignment", 4, struct.pack("<I", 0))], [info("x")]), "alignment 0"),
        (raw([pair("general.alignment", 4, struct.pack("<I", 33))], [info("x")]), "alignment 33"),
        (raw([pair("general.alignment", 8, text("32"))], [info("x")]), "alignment '32'"),
        (raw([], [info("x"), info("x", offset=128)], b"\0" * 256), "two tensors named 'x'"),
        (raw([], [info("x"), info("y")]), "'y' overlaps"),
        (raw([], [info("x", offset=4)], b"\0" * 256), "unaligned"),
        (raw([], [info("x", offset=1 << 62)]), "is truncated"),
        (raw([], [info("x", shape=(64,))]), "is truncated"),
        (raw([], [info("x", shape=(HUGE, HUGE))]), "the shape"),
        (raw([], [info("x", shape=(0, 4))]), "the shape"),
        (raw([], [info("x", shape=())]), "0 axes"),
        (raw([], [info("x", shape=(1,) * 5)]), "5 axes"),
        (raw([], [info("x", kind=12)]), "in blocks of 256"),
        (raw([], [info("x", kind=999)]), "ggml type 999; known are"),
        (raw([], [info("x", kind=9)]), "ggml type 9; known are"),  # Q8_1
    ],
)  # fmt: skip
def test_a_hostile_header_is_named_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        GgufFile(path)
    assert str(path) in caught.value.message


def test_the_handmade_file_of_these_tests_loads(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    numbers = pair("n", 9, struct.pack("<IQ", 5, 2) + struct.pack("<2i", -1, 7))
    path.write_bytes(raw([numbers, pair("s", 8, text("é"))], [info("x")], np.arange(32, dtype=np.float32).tobytes()))
    file = GgufFile(path)
    assert file.metadata == {"n": [-1, 7], "s": "é"}
    ((_, got),) = file.tensors(frozenset({"x"}), torch.float32)
    assert torch.equal(got, torch.arange(32.0))


def test_a_file_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(raw([], [info("x")]))
    file = GgufFile(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(WeightsError, match="ends inside the tensor 'x'"):
        dict(file.tensors(frozenset({"x"}), torch.float32))
