"""Damaged and hostile files: each loads or raises WeightsError with the file's name, quickly and in little memory."""

import json
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zturbo.errors import WeightsError, WeightsNotFound
from zturbo.weights import safetensors_file
from zturbo.weights.checkpoint import open_checkpoint
from zturbo.weights.folder import open_component
from zturbo.weights.gguf_file import GgufFile
from zturbo.weights.safetensors_file import SafetensorsFile
from zturbo.weights.single_file import open_file

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def written(path: Path, header: object, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": GOOD["a"] | changes}


def test_the_good_file_of_these_tests_loads(tmp_path: Path) -> None:
    path = written(tmp_path / "f", GOOD, torch.arange(4.0).numpy().tobytes())
    assert torch.equal(SafetensorsFile(path).read("a"), torch.arange(4.0).reshape(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_cast_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    values = torch.randn(13, 7, generator=torch.Generator().manual_seed(0))
    tensors = {"a": values.bfloat16(), "b": torch.ones(0, 3), "c": torch.tensor(2.5), "d": values}
    save_file(tensors, tmp_path / "f")
    monkeypatch.setattr(safetensors_file, "CAST_BYTES", 40)
    monkeypatch.setattr(safetensors_file, "READ_BYTES", 24)
    file = SafetensorsFile(tmp_path / "f")
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name, dtype), tensor.to(dtype))
        assert torch.equal(file.read(name), tensor)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "unreadable header"),
        (b"\xff\xfe{}", "unreadable header"),
        (b"{", "unreadable header"),
        (b"[" * 200_000, "unreadable header"),
        (b'{"a":' * 100_000, "unreadable header"),
        (b'{"a":1' + b"0" * 5000 + b"}", "unreadable header"),
        (b"[1]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b'{"a":' + json.dumps(GOOD["a"]).encode() + b',"a":' + json.dumps(GOOD["a"]).encode() + b"}", "occurs twice"),
        ({"a": 1}, "without exactly dtype"),
        ({"a": {"dtype": "F32"}}, "without exactly dtype"),
        ({"a": {**GOOD["a"], "extra": 1}}, "without exactly dtype"),
        (entry(dtype="F4"), "'F4', supported are"),
        (entry(dtype=["F32"]), "supported are"),
        (entry(dtype=None), "supported are"),
        (entry(shape=[-2, -2]), "the shape"),
        (entry(shape=[2.0, 2.0]), "the shape"),
        (entry(shape=[float("nan"), 2]), "the shape"),
        (entry(shape=["2", 2]), "the shape"),
        (entry(shape=[True, 4]), "the shape"),
        (entry(shape=[1] * 100), "the shape"),
        (entry(shape={"0": 2}), "the shape"),
        (entry(shape=[1 << 62, 1 << 62]), "the shape"),
        (entry(shape=[1 << 40, 1 << 40]), "its shape"),
        (entry(data_offsets=[0, 8]), "8 bytes, its shape"),
        (entry(data_offsets=[16, 0]), "-16 bytes"),
        (entry(data_offsets=[-16, 0]), "the offsets"),
        (entry(data_offsets=[0]), "the offsets"),
        (entry(data_offsets=[0, 1 << 70]), "the offsets"),
        (entry(data_offsets=[4, 20]), "leaves a gap"),
        (entry(shape=[2, 4], data_offsets=[0, 32]), "is truncated: the tensors need"),
        ({**GOOD, "b": GOOD["a"]}, "overlaps"),
        ({**GOOD, "b": {**GOOD["a"], "data_offsets": [8, 24]}}, "overlaps"),
        ({}, "after its last tensor"),
        ({**GOOD, "__metadata__": [1]}, "__metadata__"),
        ({**GOOD, "__metadata__": {"a": 1}}, "__metadata__"),
    ],
)
def test_a_corrupt_header_is_named_with_its_reason(tmp_path: Path, header: object, reason: str) -> None:
    path = written(tmp_path / "hostile.safetensors", header)
    with pytest.raises(WeightsError, match=reason) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("length", "reason"), [(1 << 63, "at most"), (17 << 20, "at most"), (1000, "is truncated: the header needs 1008")]
)
def test_a_header_longer_than_its_bound_is_never_allocated(tmp_path: Path, length: int, reason: str) -> None:
    path = written(tmp_path / "hostile.safetensors", GOOD, length=length)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=reason):
        open_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_room_for_a_header(tmp_path: Path, size: int) -> None:
    (tmp_path / "short").write_bytes(b"\x05" * size)
    with pytest.raises(WeightsError, match=f"holds {size} bytes"):
        open_file(tmp_path / "short")


def test_not_a_regular_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        open_file(tmp_path)
    with pytest.raises(WeightsNotFound, match="no such file"):
        open_file(tmp_path / "missing.safetensors")
    with pytest.raises(WeightsError):
        open_file(Path("nul\0byte"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WeightsNotFound, match="no such file"):  # opening it would wait for ever
        open_file(tmp_path / "pipe")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".PT"])
def test_a_pickle_is_refused_by_its_name(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"model{suffix}", GOOD)
    with pytest.raises(WeightsError, match="is a pickle, or named like one"):
        open_file(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_by_its_content(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": [1.0] * 100}, protocol=protocol))
    with pytest.raises(WeightsError, match="is a pickle"):
        open_checkpoint(path)


def test_torch_archives_and_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="is a pickle"):
        open_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(WeightsError, match="is a pickle"):
        open_file(path)


def test_a_header_as_long_as_a_pickle_opcode_is_no_pickle(tmp_path: Path) -> None:
    """0x280 bytes of header open with the two bytes of a protocol 2 pickle."""
    raw = json.dumps(GOOD).encode().ljust(0x280)
    path = written(tmp_path / "model.safetensors", raw)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert open_file(path).shapes == {"a": (2, 2)}


def test_a_file_cut_off_after_it_was_opened(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", GOOD)
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(WeightsError, match="ends inside the tensor 'a'"):
        file.read("a")
    with pytest.raises(WeightsError, match="ends inside the tensor 'a'"):
        file.read("a", torch.bfloat16)
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        file.read("a")


# --- shards --------------------------------------------------------------------------------------------------


def sharded(folder: Path) -> Path:
    """Two shards and their index; returns the index."""
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, folder / "model-2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    return index


def test_shards_are_seen_as_one(tmp_path: Path) -> None:
    sharded(tmp_path)
    stored = open_component(tmp_path)
    assert stored.entries.keys() == {"a", "b"}
    assert torch.equal(stored.read("b"), torch.zeros(2))


def test_shards_that_say_different_things_of_their_layers_are_refused(tmp_path: Path) -> None:
    """The last one's word alone would count, and the others' layers be read as what they are not."""
    sharded(tmp_path)
    for name, format in (("model-1", "int8"), ("model-2", "fp8")):
        said = {"_quantization_metadata": json.dumps({"layers": {name: {"format": format}}})}
        save_file({"a" if name == "model-1" else "b": torch.ones(2)}, tmp_path / f"{name}.safetensors", said)
    with pytest.raises(WeightsError, match="shards of different _quantization_metadata"):
        open_component(tmp_path)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (
            {"weight_map": {"a": "model-1.safetensors", "b": "model-3.safetensors"}},
            "shard model-3.safetensors is missing",
        ),
        ({"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}, "disagree on where 'b'"),
        ({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}, "disagree on where 'a'"),
        ({"weight_map": {"b": "model-2.safetensors", "c": "model-2.safetensors"}}, "disagree on where 'c'"),
        ({"weight_map": {"a": "../model-1.safetensors"}}, "expected the name of a .safetensors file beside it"),
        ({"weight_map": {"a": "/etc/model.safetensors"}}, "expected the name"),
        ({"weight_map": {"a": "sub/model-1.safetensors"}}, "expected the name"),
        ({"weight_map": {"a": "..\\model-1.safetensors"}}, "expected the name"),
        ({"weight_map": {"a": "model-1.safetensors\0"}}, "expected the name"),
        ({"weight_map": {"a": "model.bin"}}, "expected the name"),
        ({"weight_map": {"a": 1}}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: object, reason: str) -> None:
    file = sharded(tmp_path)
    file.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=reason) as caught:
        open_component(tmp_path)
    assert str(file) in str(caught.value)


def test_an_unreadable_index(tmp_path: Path) -> None:
    file = sharded(tmp_path)
    for text in ("", "{", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(WeightsError, match="is not JSON"):
            open_component(tmp_path)


def test_a_folder_of_pickles_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match="holds no weights"):
        open_component(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsNotFound, match=r"only pickled weights \(pytorch_model\.bin\)"):
        open_component(tmp_path)


# --- any bytes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A valid file of each format, small enough that most flips hit its header."""
    import gguf

    folder = tmp_path_factory.mktemp("small")
    marker = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    tensors = {
        "x.weight": torch.ones(4, 8).to(torch.float8_e4m3fn),
        "x.weight_scale": torch.tensor(0.5),
        "x.comfy_quant": marker,
        "y.weight": torch.ones(3, dtype=torch.bfloat16),
    }
    save_file(tensors, folder / "f", {"_note": "x"})
    writer = gguf.GGUFWriter(folder / "g", "lumina2")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_string("name", "a name")
    for name, kind in (("q8", gguf.GGMLQuantizationType.Q8_0), ("q4", gguf.GGMLQuantizationType.Q4_0)):
        values = gguf.quantize(torch.ones(2, 64).numpy(), kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"safetensors": (folder / "f").read_bytes(), "gguf": (folder / "g").read_bytes()}


def load_or_refuse(path: Path) -> dict[str, torch.Tensor] | WeightsError:
    """All tensors of a file, of the shapes it announced, or the refusal; any other end fails the test."""
    try:
        source = open_file(path)
        tensors = dict(source.tensors(frozenset(source.shapes), torch.float32))
    except WeightsError as error:
        return error
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(source.shapes)
    return tensors


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@given(data=st.data())
@settings(
    deadline=5000, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_flipped_and_cut_files_load_or_raise(
    tmp_path: Path, small_files: dict[str, bytes], kind: str, data: st.DataObject
) -> None:
    good = bytearray(small_files[kind])
    header = 300 if kind == "gguf" else 420
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, min(header, len(good) - 1)) | st.integers(0, len(good) - 1))
        good[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(good)) | st.integers(0, len(good)))
    path = tmp_path / "model.file"
    path.write_bytes(good[:cut])
    loaded = load_or_refuse(path)
    assert isinstance(loaded, dict) or str(path) in loaded.message


@given(raw=st.binary(max_size=200), magic=st.sampled_from([b"", b"GGUF", b"GGUF\x03\0\0\0", b"\x40\0\0\0\0\0\0\0{"]))
@settings(deadline=5000, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, raw: bytes, magic: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(magic + raw)
    loaded = load_or_refuse(path)
    # only an empty file of either format is made of so few bytes
    assert loaded == {} if isinstance(loaded, dict) else str(path) in loaded.message


def test_an_intact_file_of_each_kind_loads(tmp_path: Path, small_files: dict[str, bytes]) -> None:
    """The property tests above start from files that do load."""
    for kind, raw in small_files.items():
        path = tmp_path / kind
        path.write_bytes(raw)
        source = open_file(path)
        tensors = dict(source.tensors(frozenset(source.shapes), torch.float32))
        assert isinstance(source, GgufFile) == (kind == "gguf")
        names = {"q8", "q4"} if kind == "gguf" else {"x.weight", "y.weight"}
        assert tensors.keys() == names


def test_a_duplicate_among_very_many_names_is_found_at_once(tmp_path: Path) -> None:
    """A search per name would take hours on such a header."""
    names = ",".join(f'"t{index}":1' for index in range(200_000))
    header = f'{{{names},"t199999":1}}'.encode()
    path = tmp_path / "many.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="'t199999' occurs twice"):
        open_file(path)


def test_hostile_names_are_shown_harmlessly(tmp_path: Path) -> None:
    header = json.dumps({"\x1b[31mred\nzturbo: all is well" + "x" * 100_000: GOOD["a"]}).encode()
    path = tmp_path / "names.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    assert "zturbo: all is well" not in str(caught.value).splitlines()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000
