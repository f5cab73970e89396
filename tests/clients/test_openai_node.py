"""The official OpenAI package for Node against the real server; the script beside this file is what runs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.api.server_process import KEY, Serving

SCRIPT = Path(__file__).with_name("openai_node.mjs")
PNG = "iVBORw0K"


@pytest.fixture(scope="module")
def said(server: Serving, node: str, node_folder: Path) -> dict[str, Any]:
    """What the script printed, by name."""
    script = shutil.copy(SCRIPT, node_folder)  # Node looks for packages beside the script
    done = subprocess.run([node, script, f"{server.url}/v1", KEY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line["value"] for line in map(json.loads, done.stdout.splitlines())}


def test_pictures(server: Serving, said: dict[str, Any]) -> None:
    assert len(said["urls"]) == 2
    assert all(url.startswith(f"{server.url}/files/b/") for url in said["urls"])
    assert said["base64"] == PNG


def test_stream(said: dict[str, Any]) -> None:
    pictures = [event for event in said["events"] if event["type"] != "image_generation.progress"]
    kinds = [event["type"].removeprefix("image_generation.") for event in pictures]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert {event["picture"] for event in pictures} == {PNG}


def test_errors(said: dict[str, Any]) -> None:
    assert said["bad request"] == {"class": "BadRequestError", "status": 400, "code": "invalid_value", "param": "n"}
    assert said["no key"]["class"] == "AuthenticationError"
