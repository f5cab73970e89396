"""One real server for all clients, and the Node packages that some of them need."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.server_process import Serving, serving

NODE_PACKAGES = ("openai@6",)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("clients"), side=128, model_aliases="gpt-image-1") as one:
        yield one


@pytest.fixture(scope="session")
def node() -> str:
    """The path of node; skips where there is none."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


@pytest.fixture(scope="session")
def node_folder(node: str, request: pytest.FixtureRequest) -> Path:
    """A folder with the official OpenAI package for Node, fetched once; skips where npm or the net is missing."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = request.config.cache.mkdir("openai-node")
    if not (folder / "node_modules" / "openai").is_dir():
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *NODE_PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install {', '.join(NODE_PACKAGES)}: {done.stderr.strip()[-300:]}")
    return Path(folder)
