"""The published page's two examples, byte for byte but for the address and the key; and curl."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.server_process import KEY, Serving

HERE = Path(__file__).parent
ADDRESS, PLACEHOLDER = "https://api.aimlapi.com", "<YOUR_AIMLAPI_KEY>"


def example(name: str, server: Serving, folder: Path, suffix: str) -> str:
    """The example with our address and key, as a file; returns its path."""
    text = (HERE / name).read_text("utf-8")
    assert (text.count(ADDRESS), text.count(f"Bearer {PLACEHOLDER}")) == (1, 1)
    path = folder / f"example{suffix}"
    path.write_text(text.replace(ADDRESS, server.url).replace(f"Bearer {PLACEHOLDER}", f"Bearer {KEY}"), "utf-8")
    return str(path)


def test_python(server: Serving, tmp_path: Path) -> None:
    path = example("published_example.py.txt", server, tmp_path, ".py")
    said = json.loads(subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout)
    (picture,) = said["data"]
    assert picture["url"].startswith(f"{server.url}/files/b/")
    assert picture["url"].endswith(".png")
    assert "b64_json" not in picture
    assert said["meta"]["usage"]["tokens_used"] == 10500
    fetched = server.ask("GET", picture["url"].removeprefix(server.url), headers={"authorization": ""})
    assert (fetched.status, fetched.headers["content-type"]) == (200, "image/png")


def test_javascript(server: Serving, node: str, tmp_path: Path) -> None:
    path = example("published_example.js.txt", server, tmp_path, ".mjs")
    said = subprocess.run([node, path], capture_output=True, text=True, check=True).stdout
    assert said.startswith("Generation: {")
    assert f"url: '{server.url}/files/b/" in said
    assert "tokens_used: 10500" in said


def test_curl(server: Serving) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "alibaba/z-image-turbo", "prompt": "a red fox in fresh snow", "image_size": "square"})
    command = [curl, "-sS", "--fail", f"{server.url}/v1/images/generations", "-H", f"Authorization: Bearer {KEY}",
               "-H", "Content-Type: application/json", "-d", body]  # fmt: skip
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["data"][0]["url"].startswith(f"{server.url}/files/b/")
