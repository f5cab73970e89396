"""The demo's server: reached directly, and apart from the user's own one."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tools import demo
from zturbo.config import load_config


class Ready(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def ready() -> Iterator[str]:
    """The address of a server that is ready."""
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Started:
    """Stands for the server's process; remembers what it was started with."""

    environment: dict[str, str]

    def __init__(self, _command: list[str], env: dict[str, str], **_streams: object) -> None:
        Started.environment = env

    def send_signal(self, number: int) -> None:
        pass

    def wait(self, timeout: float) -> None:
        pass


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Started]:
    """No server is started, and the user's settings are those of another one."""
    file = tmp_path / "users.toml"
    file.write_text('public_url = "https://pictures.example"\nhost = "0.0.0.0"')
    monkeypatch.setenv("ZTURBO_CONFIG", str(file))
    monkeypatch.setenv("ZTURBO_PUBLIC_URL", "https://other.example")
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(demo, "wait_until_ready", lambda *_: None)
    return Started


def test_a_proxy_is_not_asked_for_this_machine(ready: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(demo, "READY_S", 10)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        demo.wait_until_ready(ready, server, tmp_path / "server.log")


def test_the_demo_is_not_the_users_server(started: type[Started], tmp_path: Path) -> None:
    with demo.serving(tmp_path) as (address, key):
        settings = load_config(environment=started.environment)
    assert (settings.public_url, settings.host, settings.api_key) == (address, "127.0.0.1", key)


def test_the_playgrounds_pictures_need_no_key(started: type[Started], tmp_path: Path) -> None:
    screenshots = pytest.importorskip("tools.screenshots", reason="the browser tests' packages are not installed")
    with demo.serving(tmp_path, screenshots.own_settings(tmp_path)):
        settings = load_config(environment=started.environment)
    assert (settings.public_url, settings.host, settings.local_sessions) == ("", "127.0.0.1", True)
