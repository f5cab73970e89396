"""The whole of it in one run: start the server, send the published example request, save the picture, stop.

    python tools/demo.py [output/t-rex.png]

Needs nothing but the installed package: the server keeps its records and files in a temporary folder.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

EXAMPLE = {
    "model": "alibaba/z-image-turbo",
    "prompt": "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses.",
    "image_size": {"width": 1440, "height": 512},
}
READY_S = 120
ANSWER_S = 300
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The server is on this machine: a proxy of the environment could not reach it."""


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "output/t-rex.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="zturbo-demo-") as folder, serving(Path(folder)) as (address, key):
        request = urllib.request.Request(
            f"{address}/v1/images/generations",
            json.dumps(EXAMPLE).encode(),
            {"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        with DIRECT.open(request, timeout=ANSWER_S) as answer:
            found = json.load(answer)
        print(json.dumps(found, indent=2, ensure_ascii=False))
        with DIRECT.open(found["data"][0]["url"], timeout=ANSWER_S) as picture:
            target.write_bytes(picture.read())
    print(target)


@contextmanager
def serving(folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[tuple[str, str]]:
    """A server on a free port, ready to draw: its address and a key. Its log is shown where it fails.

    Where it listens, what it calls itself and what draws is not the user's own server's, whatever their settings say.

    Args:
        folder: for its records, its files and its log.
        settings: environment variables that win over the user's and over ours.
    """
    port, key, log = free_port(), secrets.token_hex(16), folder / "server.log"
    address = f"http://127.0.0.1:{port}"
    ours = {
        "ZTURBO_API_KEY": key, "ZTURBO_DATA_DIR": str(folder / "data"), "ZTURBO_HOST": "127.0.0.1",
        "ZTURBO_PUBLIC_URL": address, "ZTURBO_MODEL": "nano",
        "ZTURBO_LORA": "", "ZTURBO_TEXT_ENCODER": "", "ZTURBO_VAE": "",
    }  # fmt: skip
    environment = {**os.environ, **ours, **settings}
    command = [sys.executable, "-m", "zturbo", "serve", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        print(f"zturbo serves at {address}; loading the model", file=sys.stderr)
        wait_until_ready(address, server, log)
        yield address, key
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:  # the user's settings may grant it more to finish
            server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for /readyz; a server that ends or never gets ready is told with its reason and its log."""
    deadline, reason = time.monotonic() + READY_S, "it does not answer"
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with DIRECT.open(f"{address}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as error:
            reason = json.load(error)["message"]
        except (urllib.error.URLError, TimeoutError):
            pass
        time.sleep(0.1)
    sys.exit(f"the server did not get ready: {reason}\n{log.read_text(errors='replace')}")


if __name__ == "__main__":
    main()
