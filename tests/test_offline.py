"""Nothing leaves this computer: drawing, expanding and screening open no connection and ask for no name."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print("NETWORK", event, arguments, flush=True)

sys.addaudithook(watch)
from zturbo.config import load_config
from zturbo.engine.engine import Engine
from zturbo.params import GenerationParams
from zturbo.safety.checker import screen
from zturbo.safety.load import load_safety

safety, engine = load_safety(load_config()), Engine.load("nano")
params = GenerationParams.parse({"prompt": "a cat", "size": "512x512", "steps": 1, "seed": 1})
*_, last = engine.draw(params)
screened = screen(safety.checker, last.pictures[0])
print(last.pictures[0].pixels.shape, screened.verdict is not None, flush=True)
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError:
    pass
"""


def test_nothing_leaves_this_computer(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ZTURBO_")}
    (tmp_path / "config.toml").touch()
    clean["ZTURBO_CONFIG"] = str(tmp_path / "config.toml")
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=clean, capture_output=True, text=True, check=True)
    told = ran.stdout.splitlines()
    assert told[0] == "(512, 512, 3) True", ran.stdout
    assert {line.split()[0] for line in told[1:]} == {"NETWORK"}, "the watch must see its own connection, the last"
