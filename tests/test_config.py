"""Settings: which place wins, and how a wrong one is told."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zturbo import config
from zturbo.config import SETTINGS, Config, Setting, adapters_of, load_config
from zturbo.errors import ConfigError, InvalidInput

GOOD = {
    "model": "folder", "lora": "a.safetensors:0.5, b.safetensors", "text_encoder": "encoder", "vae": "ae.safetensors",
    "device": "cpu", "dtype": "float32", "quantization": "int8", "acceleration": "high",
    "attention": "cudnn",
    "threads": "3", "output_dir": "pictures", "metadata": "no",
    "host": "0.0.0.0", "port": "9000", "api_key": "a" * 32, "queue_limit": "3", "local_sessions": "no",
    "data_dir": "drawn",
    "public_url": "https://pictures.example/z", "model_aliases": "gpt-image-1, dall-e-3", "rate_limit": "60",
    "concurrency_limit": "2", "request_timeout_s": "60", "shutdown_grace_s": "5", "retention_days": "30",
    "credits_per_megapixel": "1", "log_format": "json", "c2pa_certificate": "chain.pem", "c2pa_key": "key.pem",
    "safety_checker": "none", "safety_threshold": "0.25", "safety_labels": "porn,sexy", "safety_policy": "always",
    "prompt_guard_url": "http://127.0.0.1:8001/v1", "prompt_guard_key": "secret", "prompt_guard_model": "guard",
    "prompt_guard_refuses": "controversial", "prompt_guard_timeout_s": "3",
    "expansion_provider": "none", "expansion_url": "http://127.0.0.1:11434/v1", "expansion_key": "sk-secret",
    "expansion_model": "qwen3:4b", "expansion_timeout_s": "3",
}  # fmt: skip
"""A value for each setting, as an environment variable spells it, that is not the default."""
BAD = {
    "model": "", "lora": "a:nan", "text_encoder": "~nobody-of-that-name/x", "vae": "~nobody-of-that-name/x",
    "device": "tpu", "dtype": "int3", "quantization": "int3", "acceleration": "fast", "threads": "-1",
    "attention": "fast",
    "output_dir": "~nobody-of-that-name/x", "metadata": "perhaps", "host": "", "port": "70000", "api_key": "short",
    "queue_limit": "0", "local_sessions": "perhaps", "data_dir": "~nobody-of-that-name/x",
    "public_url": "ftp://x", "model_aliases": "a,,b",
    "rate_limit": "-1", "concurrency_limit": "many", "request_timeout_s": "0", "shutdown_grace_s": "4000",
    "retention_days": "1.5", "credits_per_megapixel": "-1", "log_format": "xml",
    "c2pa_certificate": "~nobody-of-that-name/x",
    "c2pa_key": "~nobody-of-that-name/x",
    "safety_checker": "", "safety_threshold": "1.5", "safety_labels": "porn,,sexy", "safety_policy": "never",
    "prompt_guard_url": "ftp://x", "prompt_guard_key": "a b", "prompt_guard_model": "a b",
    "prompt_guard_refuses": "safe", "prompt_guard_timeout_s": "0",
    "expansion_provider": "cloud", "expansion_url": "http://user:secret@host/v1", "expansion_key": "two words",
    "expansion_model": "two words", "expansion_timeout_s": "0",
}  # fmt: skip
each = pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])


@pytest.fixture(autouse=True)
def no_file_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


@given(
    st.text(st.characters(exclude_characters="\0\n,~", exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.floats(-100, 100).map(lambda scale: round(scale, 3)),
)
def test_an_adapter_and_its_scale(name: str, scale: float) -> None:
    file = Path(f"a{name}b")
    assert adapters_of(f"{file}:{scale:.3f}") == ((file, scale),)
    assert adapters_of(f"{file}.safetensors\n") == ((Path(f"{file}.safetensors"), 1.0),)


def test_several_adapters_keep_their_order() -> None:
    assert adapters_of("") == adapters_of("\n") == ()  # as `--lora ""` does without those of the settings file
    assert adapters_of("b:0.5, a ,c:-1") == ((Path("b"), 0.5), (Path("a"), 1.0), (Path("c"), -1.0))
    assert adapters_of("with, comma:2\nb\n") == ((Path("with, comma"), 2.0), (Path("b"), 1.0))


def test_an_adapter_of_that_whole_name_is_meant_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style:2").touch()
    assert adapters_of("style:2") == ((Path("style:2"), 1.0),)
    assert adapters_of("style:2:0.5") == ((Path("style:2"), 0.5),)
    assert adapters_of(f"{'a' * 5000}:0.5") == ((Path("a" * 5000), 0.5),)


@pytest.mark.parametrize("text", ["a:inf", "b,a:-inf", "a:nan", ":1", "a,,b", ",", "~nobody-of-that-name/a:1"])
def test_adapters_without_a_name_or_a_finite_scale_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="ZTURBO_LORA: must be FILE or FILE:SCALE with a finite scale"):
        load_config(environment={"ZTURBO_LORA": text})


@pytest.mark.parametrize("share", [1e-05, 0.1234567890123, 1.0])
def test_a_share_survives_being_written_down(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """As a server hands its settings to its worker."""
    monkeypatch.setenv("ZTURBO_SAFETY_THRESHOLD", str(share))
    assert load_config().safety_threshold == share


def value_of(setting: Setting, made: Config) -> object:
    return getattr(made, setting.name)


def test_the_table_has_every_member_of_the_config() -> None:
    assert [setting.name for setting in SETTINGS] == list(Config.__dataclass_fields__)
    assert {setting.name for setting in SETTINGS} == GOOD.keys()


@each
def test_every_default_passes_its_own_check(setting: Setting) -> None:
    assert setting.read(str(setting.default)) == setting.default
    assert value_of(setting, load_config(environment={})) == setting.default


@each
def test_flags_then_environment_then_file_then_default(setting: Setting, tmp_path: Path) -> None:
    good = setting.read(GOOD[setting.name])
    assert good != setting.default
    file = written(tmp_path, f'{setting.name} = "{GOOD[setting.name]}"')
    default = {setting.variable: str(setting.default)}
    assert value_of(setting, load_config(file=file, environment={})) == good
    if setting.default != "":  # an empty variable counts as absent
        assert value_of(setting, load_config(file=file, environment=default)) == setting.default
    assert value_of(setting, load_config({setting.name: GOOD[setting.name]}, file, default)) == good
    no_flag = load_config({setting.name: None}, file, default)
    assert value_of(setting, no_flag) == (setting.default if setting.default != "" else good)


@each
def test_an_empty_variable_counts_as_absent(setting: Setting) -> None:
    assert value_of(setting, load_config(environment={setting.variable: ""})) == setting.default


@each
def test_a_wrong_value_is_told_with_where_it_came_from(setting: Setting, tmp_path: Path) -> None:
    bad = BAD[setting.name]
    file = written(tmp_path, f'{setting.name} = "{bad}"')
    with pytest.raises(ConfigError) as caught:
        load_config(file=file, environment={})
    assert f"{file}, {setting.name}" in caught.value.message
    assert (repr(bad) in caught.value.message) is not setting.secret
    assert setting.allowed in caught.value.message
    with pytest.raises(InvalidInput) as refused:
        load_config({setting.name: bad}, environment={})
    assert refused.value.problems[0].path == ("--" + setting.name.replace("_", "-"),)
    assert refused.value.problems[0].received == (None if setting.secret else bad)
    if bad:
        with pytest.raises(ConfigError, match=f"environment variable {setting.variable}: must be"):
            load_config(environment={setting.variable: bad})


def test_all_wrong_values_are_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, 'thread = 3\ndtype = "bfloat"\nmetadata = 3\n[zzz]\nport = 1')
    with pytest.raises(ConfigError) as caught:
        load_config(file=file, environment={"ZTURBO_DEVICE": "gpu"})
    lines = caught.value.message.splitlines()
    assert len(lines) == 5
    assert f"{file}: no setting is called 'thread'; did you mean threads?" in lines
    assert any("'zzz'" in line and "known: model" in line for line in lines)
    assert any("nearest valid value: bfloat16" in line for line in lines)
    with pytest.raises(InvalidInput) as refused:
        load_config({"dtype": "x", "device": "y"}, environment={})
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    "address", ["http://host:port/v1", "http://127.0.0.1:11434:80/v1", "http://host:65536", "http://[::1", "http://:80"]
)
def test_an_address_has_one_port_and_it_is_a_number(address: str) -> None:
    with pytest.raises(ConfigError, match="ZTURBO_EXPANSION_URL"):
        load_config(environment={"ZTURBO_EXPANSION_URL": address})


@pytest.mark.parametrize("address", ["http://host", "https://[::1]:65535/v1", "http://a.example:80/v1/"])
def test_addresses(address: str) -> None:
    found = load_config(environment={"ZTURBO_EXPANSION_URL": address}).expansion_url
    assert found == address.rstrip("/")


def test_an_endpoint_needs_its_address_and_its_model() -> None:
    with pytest.raises(ConfigError, match="ZTURBO_EXPANSION_MODEL") as caught:
        load_config({"expansion_provider": "endpoint", "expansion_url": "http://host/v1"}, environment={})
    assert "ZTURBO_EXPANSION_URL" not in str(caught.value)
    named = {"expansion_url": "http://host/v1", "expansion_model": "m"}
    assert load_config({"expansion_provider": "endpoint", **named}, environment={}).expansion_model == "m"


def test_a_value_that_is_overruled_is_not_judged(tmp_path: Path) -> None:
    file = written(tmp_path, 'dtype = "wrong"')
    assert load_config(file=file, environment={"ZTURBO_DTYPE": "float16"}).dtype == "float16"
    assert load_config({"dtype": "float32"}, file, {}).dtype == "float32"


def test_the_file_is_the_flags_then_the_environments_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / f"{number}.toml" for number in range(3)]
    for number, place in enumerate(places):
        place.write_text(f"threads = {number + 1}", encoding="utf-8")
    monkeypatch.setattr(config, "DEFAULT_FILE", places[2])
    variable = {"ZTURBO_CONFIG": str(places[1])}
    assert load_config(file=places[0], environment=variable).threads == 1
    assert load_config(environment=variable).threads == 2
    assert load_config(environment={}).threads == 3


def test_native_types_of_the_file(tmp_path: Path) -> None:
    made = load_config(file=written(tmp_path, "threads = 4\nmetadata = false"), environment={})
    assert (made.threads, made.metadata) == (4, False)
    made = load_config(file=written(tmp_path, "metadata = 0\nlocal_sessions = 1"), environment={})
    assert (made.metadata, made.local_sessions) == (False, True)
    assert type(made.metadata) is bool


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert load_config(file=written(tmp_path, "\ufeffthreads = 4"), environment={}).threads == 4


@pytest.mark.parametrize("labels", ["Enticing or Sensual, Pornography", "porn,\n sexy", "色情", "NSFW (explicit)"])
def test_labels_are_named_as_classifiers_name_them(labels: str) -> None:
    assert load_config(environment={"ZTURBO_SAFETY_LABELS": labels}).safety_labels == labels


@pytest.mark.parametrize("labels", [" ", ",", "porn,", "porn, ,sexy", "po\x1brn", "po\nrn"])
def test_labels_without_a_name_or_with_control_characters_are_refused(labels: str) -> None:
    with pytest.raises(ConfigError, match="SAFETY_LABELS: must be names, separated by commas"):
        load_config(environment={"ZTURBO_SAFETY_LABELS": labels})


@pytest.mark.parametrize(
    "text",
    [
        "threads = true",
        "threads = 1.5",
        "metadata = 2",
        "metadata = -1",
        "metadata = 1.0",
        "model = 3",
        "threads = 1025",
    ],
)
def test_wrong_types_of_the_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be"):
        load_config(file=written(tmp_path, text), environment={})


def test_a_home_folder_is_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert load_config(environment={"ZTURBO_OUTPUT_DIR": "~/x"}).output_dir == Path("/home/of/somebody/x")


@pytest.mark.parametrize("content", [b"threads = ", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_file_that_is_no_toml(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*broken\.toml"):
        load_config(file=path, environment={})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(environment={"ZTURBO_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(file=tmp_path, environment={})


def test_a_file_in_the_home_of_nobody_is_told() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings file ~nobody-of-that-name/x\.toml"):
        load_config(environment={"ZTURBO_CONFIG": "~nobody-of-that-name/x.toml"})


def test_a_home_that_may_not_be_entered_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> bool:  # permissions would not hold for a test that root runs
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert load_config(environment={}) == Config()


@given(st.sampled_from(SETTINGS), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_text_is_taken_or_refused(setting: Setting, text: str) -> None:
    try:
        value = value_of(setting, load_config(environment={setting.variable: text}))
    except ConfigError as error:
        refused = error.message
    else:
        refused = setting.variable
        assert type(value) is type(setting.default) or isinstance(value, Path)
    assert setting.variable in refused


def test_flags_without_a_setting_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="flags without a setting"):
        load_config({"colour": "red"}, environment={})
