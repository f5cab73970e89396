"""Schemathesis reads the published document and ours, and sends what they allow and what they forbid to the server.

All its checks are on; `fuzz_hooks.py` names the few things that are forgiven, and why. `make fuzz` sends thousands.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.server_process import KEY, Serving, serving

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))
"""Of each operation, of each phase that makes them at random."""
SEED = () if "FUZZ_EXAMPLES" in os.environ else ("--seed", "20")
"""The same requests at each run of the tests, others at each `make fuzz`; both print theirs."""
ROOT = Path(__file__).parents[2]
SIDE = 64


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    """A server of one test's own: a manager's requests may find its own key and take scopes from it."""
    with serving(tmp_path, side=SIDE) as one:
        yield one


def fuzz(server: Serving, folder: Path, location: str, *options: str) -> str:
    """Run Schemathesis; returns what it printed."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", location, "--url", server.url]
    done = subprocess.run(
        [*command, "-H", f"Authorization: Bearer {KEY}", "--max-examples", str(EXAMPLES), "--continue-on-failure",
         "--checks", "all", "--request-timeout", "60", "--no-color", *options],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.api.fuzz_hooks"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ generated, \d+ passed", done.stdout), "no case was sent"
    return done.stdout


def crashes(server: Serving) -> list[str]:
    """Lines of the log that tell of a crash."""
    return [line for line in server.log.read_text("utf-8").splitlines() if '"event": "crashed"' in line]


def test_our_document(server: Serving, tmp_path: Path) -> None:
    fuzz(server, tmp_path, f"{server.url}/openapi.json")
    assert crashes(server) == []


def test_the_published_document(server: Serving, tmp_path: Path) -> None:
    fuzz(server, tmp_path, str(Path(__file__).with_name("seed_openapi.json")))
    assert crashes(server) == []


def test_a_wrong_document_is_seen(server: Serving, tmp_path: Path) -> None:
    """The two tests above would fail for an answer that is not as documented."""
    document = json.loads(server.ask("GET", "/openapi.json").body)
    said = document["paths"]["/healthz"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    said["properties"]["status"]["enum"] = ["fine"]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(document))
    with pytest.raises(AssertionError, match="violates schema"):
        fuzz(server, tmp_path, str(path), "--include-path", "/healthz")
