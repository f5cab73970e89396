"""Downloads against a hub of this machine: the client is real, only the server is made here."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from zturbo.errors import DownloadError, WeightsNotFound
from zturbo.weights import hub, transfer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 40


@dataclass
class Hub:
    """What the server has, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    announced: dict[str, str] = field(default_factory=dict)
    """sha256 by file, where it is not the truth."""
    asked: list[str] = field(default_factory=list)
    begun_at: dict[str, list[int]] = field(default_factory=dict)
    """First byte of every transfer of a file's content."""
    breaks_at: int = 0
    breaks: int = 0
    """So many transfers of weights end after `breaks_at` bytes."""
    stalls: threading.Event | None = None
    """What breaks stays open without another byte until this is set."""
    status_of_weights: list[int] = field(default_factory=list)
    """Answers to the next requests for weights; 0 closes the connection without one."""
    knows_ranges: bool = True
    status: int = 200
    endpoint: str = ""


def handler(server: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            server.asked.append(path)
            name = path.partition("/resolve/")[2].partition("/")[2]
            if server.status != 200:
                error = {404: "RepoNotFound", 403: "GatedRepo"}.get(server.status, "")
                self.reply(server.status, b"{}", body, {"X-Error-Code": error})
            elif "/revision/" in path or path == "/api/models/some/model":
                self.reply(200, json.dumps({"id": "some/model", "sha": COMMIT, "siblings": []}).encode(), body)
            elif "/tree/" in path:
                self.reply(200, json.dumps([self.listed(file) for file in server.files]).encode(), body)
            elif name in server.files:
                content = server.files[name]
                if (
                    body
                    and name.endswith(".safetensors")
                    and server.status_of_weights
                    and not server.status_of_weights.pop(0)
                ):
                    self.close_connection = True
                    return
                begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0]) if server.knows_ranges else 0
                if body:
                    server.begun_at.setdefault(name, []).append(begin)
                headers = {"ETag": f'"{server.announced.get(name, digest(content))}"', "X-Repo-Commit": COMMIT}
                if server.knows_ranges and "Range" in self.headers:
                    headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                self.reply(
                    206 if server.knows_ranges and "Range" in self.headers else 200,
                    content[begin:],
                    body,
                    headers,
                    name,
                )
            else:
                self.reply(404, b"{}", body, {"X-Error-Code": "EntryNotFound"})

        def listed(self, file: str) -> dict[str, object]:
            content = server.files[file]
            entry: dict[str, object] = {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
            if file.endswith((".safetensors", ".bin")):
                sha = server.announced.get(file, digest(content))
                entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 100}
            return entry

        def reply(
            self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None, name: str = ""
        ) -> None:
            self.send_response(status)
            for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and name.endswith(".safetensors") and server.breaks:
                self.close_connection, server.breaks = True, server.breaks - 1
                self.wfile.write(content[: server.breaks_at])
                if server.stalls:
                    server.stalls.wait(30)
            elif body:
                self.wfile.write(content)

    return Handler


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub(
        files={
            "model_index.json": b'{"_class_name": "ZImagePipeline"}',
            "transformer/model.safetensors": WEIGHTS,
            "tokenizer/merges.txt": b"a b",
            "pytorch_model.bin": b"a pickle",
            "run.py": b"code",
        }
    )
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    state.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_model_is_downloaded_checked_and_found_again(server: Hub, tmp_path: Path) -> None:
    assert hub.find("some/model@v1", cache=tmp_path) is None
    verified: list[str] = []
    folder = hub.pull("some/model@v1", cache=tmp_path, endpoint=server.endpoint, on_verified=verified.append)
    assert folder.name == COMMIT  # the branch was pinned to one commit
    assert (folder / "transformer" / "model.safetensors").read_bytes() == WEIGHTS
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"model_index.json", "transformer/model.safetensors", "tokenizer/merges.txt"}
    assert verified == ["transformer/model.safetensors"]
    assert not any(path.endswith((".bin", ".py")) for path in server.asked)
    server.asked.clear()
    assert hub.find(f"some/model@{COMMIT}", cache=tmp_path) == folder
    assert hub.find("some/model@v1", cache=tmp_path) == folder
    assert server.asked == []


@pytest.mark.parametrize("revision", ["", "@a/branch"])
def test_a_model_is_found_by_the_name_it_was_pulled_by(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    name = f"some/model{revision}"
    older = tmp_path / "models--some--model" / "refs" / (revision.removeprefix("@") or "main")
    older.parent.mkdir(parents=True)
    older.write_text("0" * 40)  # what another program brought earlier
    folder = hub.pull(name, cache=tmp_path, endpoint=server.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)  # where `find` would ask if it did
    server.asked.clear()
    assert hub.find(name, cache=tmp_path) == folder
    assert server.asked == []


def test_bytes_that_differ_from_the_announced_hash_are_removed(server: Hub, tmp_path: Path) -> None:
    server.announced["transformer/model.safetensors"] = "0" * 64
    with pytest.raises(DownloadError, match=r"transformer/model\.safetensors has the sha256") as caught:
        hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert digest(WEIGHTS) in caught.value.message
    assert not list(tmp_path.rglob("model.safetensors"))
    server.announced.clear()
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)  # and the next attempt heals it
    assert (folder / "transformer" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1000)
    monkeypatch.setattr("zturbo.weights.transfer.time.sleep", lambda _: None)


@pytest.mark.usefixtures("no_waiting")
def test_a_broken_connection_is_continued_where_it_broke(server: Hub, tmp_path: Path) -> None:
    server.breaks_at, server.breaks = 3000, 1
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert (folder / "transformer" / "model.safetensors").read_bytes() == WEIGHTS
    assert server.begun_at["transformer/model.safetensors"] == [0, 3000]


@pytest.mark.usefixtures("no_waiting")
def test_a_connection_that_falls_silent_is_given_up_and_continued(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.breaks_at, server.breaks, server.stalls = 3000, 1, threading.Event()
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    server.stalls.set()
    assert (folder / "transformer" / "model.safetensors").read_bytes() == WEIGHTS
    assert server.begun_at["transformer/model.safetensors"] == [0, 3000]


def test_bytes_are_checked_before_they_get_their_name(tmp_path: Path, server: Hub) -> None:
    """Else a pull that is interrupted while it checks leaves what looks whole."""
    seen: list[list[str]] = []

    def interrupted(part: Path) -> None:
        seen.append([path.name for path in tmp_path.iterdir() if path.suffix != ".lock"])
        raise KeyboardInterrupt

    url = f"{server.endpoint}/some/model/resolve/{COMMIT}/transformer/model.safetensors"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            transfer.download(url, tmp_path / "blob", len(WEIGHTS), "weights", interrupted)
    assert seen == 2 * [["blob.zturbo-part"]]
    assert len(server.begun_at["transformer/model.safetensors"]) == 1, "and nothing is brought twice"


def test_a_file_that_was_damaged_since_is_found_and_removed(server: Hub, tmp_path: Path) -> None:
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    (folder / "transformer" / "model.safetensors").resolve().write_bytes(b"x" * len(WEIGHTS))
    with pytest.raises(DownloadError, match="it was removed"):
        hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.usefixtures("no_waiting")
def test_another_run_continues_where_the_first_gave_up(server: Hub, tmp_path: Path) -> None:
    server.breaks_at, server.breaks = 1000, 1
    server.status_of_weights = [200] + [0] * transfer.ATTEMPTS
    with pytest.raises(DownloadError, match="cannot download some/model") as caught:
        hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert "HF_ENDPOINT" in caught.value.hint
    assert hub.find(f"some/model@{COMMIT}", cache=tmp_path) is None  # nothing looks complete that is not
    server.begun_at.clear()
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert (folder / "transformer" / "model.safetensors").read_bytes() == WEIGHTS
    assert server.begun_at["transformer/model.safetensors"] == [1000]
    assert not list(tmp_path.rglob("*.zturbo-part"))


@pytest.mark.usefixtures("no_waiting")
def test_what_another_run_brought_meanwhile_is_not_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = tmp_path / "blob"

    @contextmanager
    def lock_that_another_run_had(_path: Path) -> Iterator[None]:
        blob.write_bytes(WEIGHTS)
        yield

    monkeypatch.setattr("huggingface_hub.utils.WeakFileLock", lock_that_another_run_had)
    assert not transfer.download("http://127.0.0.1:9/nobody-is-asked", blob, len(WEIGHTS), "weights", print)
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]


@pytest.mark.usefixtures("no_waiting")
def test_a_server_without_ranges_sends_the_whole_again(server: Hub, tmp_path: Path) -> None:
    server.breaks_at, server.breaks, server.knows_ranges = 3000, 1, False
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert (folder / "transformer" / "model.safetensors").read_bytes() == WEIGHTS
    assert server.begun_at["transformer/model.safetensors"] == [0, 0]


@pytest.mark.parametrize(("file", "sha"), [("../outside.safetensors", None), ("a.safetensors", "../../outside")])
def test_names_that_lead_out_of_the_cache_are_refused(server: Hub, tmp_path: Path, file: str, sha: str | None) -> None:
    server.files[file] = WEIGHTS
    if sha:
        server.announced[file] = sha
    with pytest.raises(DownloadError, match="the hub lists"):
        hub.pull("some/model", cache=tmp_path / "cache", endpoint=server.endpoint)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("outside*"))


def test_only_what_is_missing_is_downloaded(server: Hub, tmp_path: Path) -> None:
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    (folder / "model_index.json").resolve().unlink()
    (folder / "model_index.json").unlink()
    server.begun_at.clear()
    assert hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint) == folder
    assert server.begun_at == {"model_index.json": [0]}


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "the hub has no"), (403, "accepted its terms"), (500, "cannot download")]
)
def test_a_refusal_says_what_to_do(server: Hub, tmp_path: Path, status: int, reason: str) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=reason) as caught:
        hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert "some/model" in caught.value.message
    assert "hf " in caught.value.hint


def test_offline_the_error_lists_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot download Tongyi-MAI/Z-Image-Turbo") as caught:
        hub.pull("Tongyi-MAI/Z-Image-Turbo", cache=tmp_path, endpoint="http://127.0.0.1:9")
    for way in ("hf download", "--model FOLDER", "HF_ENDPOINT", "HF_HOME", hub.PINNED["Tongyi-MAI/Z-Image-Turbo"]):
        assert way in caught.value.hint


SINGLE = ("diffusion_pytorch_model.safetensors",)
SHARDS = tuple(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
INDEX = "model.safetensors.index.json"


def pipeline(folder: Path) -> Path:
    """The files of a pipeline, all empty: their names are what counts."""
    files = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"]
    files += [f"{network}/config.json" for network in ("transformer", "text_encoder", "vae")]
    for network, names in (("transformer", (*SHARDS, INDEX)), ("text_encoder", (*SHARDS, INDEX)), ("vae", SINGLE)):
        files += [f"{network}/{name}" for name in names]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize(
    "missing",
    ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "vae/config.json", f"vae/{SINGLE[0]}",
     f"transformer/{SHARDS[0]}", f"text_encoder/{SHARDS[2]}", f"transformer/{INDEX}"],
)  # fmt: skip
def test_a_pipeline_is_whole_with_all_its_files(tmp_path: Path, missing: str) -> None:
    folder = pipeline(tmp_path)
    assert hub.is_whole_pipeline(folder)
    (folder / missing).unlink()
    assert not hub.is_whole_pipeline(folder)
    (folder / missing).symlink_to(tmp_path / "a blob that is gone")
    assert not hub.is_whole_pipeline(folder)


def test_what_another_program_fetched_is_no_whole_pipeline(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").touch()
    assert not hub.is_whole_pipeline(tmp_path)
    assert not hub.is_whole_pipeline(tmp_path / "nowhere")


def test_a_repository_of_any_other_layout_is_found(server: Hub, tmp_path: Path) -> None:
    server.files = {"split_files/z_image_turbo_bf16.safetensors": WEIGHTS}
    folder = hub.pull("some/model", cache=tmp_path, endpoint=server.endpoint)
    assert hub.find("some/model", cache=tmp_path) == folder


def test_names() -> None:
    assert len(hub.model_named("Tongyi-MAI/Z-Image-Turbo").revision) == 40
    assert hub.model_named("Tongyi-MAI/Z-Image-Turbo@main").revision == "main"
    assert hub.model_named("owner/name").revision == "main"
    assert hub.model_named("owner/name@abc").revision == "abc"
    for name in ("unknown", "", "a/b/c", "/b", "a/", "./a", "../a", "~a/b"):
        with pytest.raises(WeightsNotFound, match="there is no model named"):
            hub.model_named(name)
    with pytest.raises(DownloadError, match="the hub has no bad name/x"):
        hub.pull("bad name/x")
    assert hub.find("-bad-/name--x") is None


def test_without_a_home_folder_nothing_is_found(homeless: None) -> None:
    assert hub.find("some/model", cache=Path("~/.cache/huggingface/hub")) is None
