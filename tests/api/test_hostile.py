"""Whatever can be sent that should not be: each gets a clear answer, and nothing is charged, written or leaked."""

import concurrent.futures
import contextlib
import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.api.server_process import GENERATIONS, KEY, Reply, Serving, serving
from zturbo.api.images import BODY_TIMEOUT_S, MAX_BODY_BYTES

SECRET = "a prompt that nobody may read in a log"
BODY = {"model": "alibaba/z-image-turbo", "prompt": SECRET, "image_size": "square"}
DEEP = 100_000


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("hostile"), side=64) as one:
        yield one


@pytest.fixture
def server(process: Serving) -> Iterator[Serving]:
    """The server; whatever a test has sent to it was refused, and its log tells no prompt and no key."""
    before = charged(process), pictures(process)
    yield process
    assert (charged(process), pictures(process)) == before, "something was charged or written"
    assert process.ask("GET", "/healthz").status == 200
    log = process.log.read_text("utf-8")
    assert SECRET not in log
    assert KEY[8:] not in log
    assert '"event": "crashed"' not in log


def charged(server: Serving) -> int:
    with closing(sqlite3.connect(server.data_dir / "records.sqlite", timeout=30)) as connection:
        (credits, held) = connection.execute("SELECT total(credits), total(held) FROM generations").fetchone()
        return int(credits + held)


def pictures(server: Serving) -> list[Path]:
    return sorted(path for path in (server.data_dir / "files").rglob("*") if path.is_file())


def post(server: Serving, raw: bytes, **headers: str) -> Reply:
    return server.ask("POST", GENERATIONS, raw, {name.replace("_", "-"): value for name, value in headers.items()})


def refused(reply: Reply, status: int, *words: str) -> dict[str, Any]:
    """The answer is our error and has the words in its message."""
    assert reply.status == status, reply.body
    found: dict[str, Any] = reply.json()
    assert found["statusCode"] == found["status"] == status
    assert found["requestId"] == reply.headers["x-request-id"]
    for word in words:
        assert word in found["message"]
    return found


@pytest.mark.parametrize(
    ("member", "value", "rule"),
    [
        ("model", "dall-e-3", "must be one of alibaba/z-image-turbo"),
        ("model", 7, "must be one of alibaba/z-image-turbo"),
        ("prompt", 7, "must be a text"),
        ("prompt", ["a"], "must be a text"),
        ("prompt", "\ud800", "U+D800 at position 0"),
        ("prompt", "a\0b", "U+0000 at position 1"),
        ("prompt", "x" * 4001, "at most 4000 characters; got 4001"),
        ("image_size", "huge", "must be square_hd"),
        ("image_size", [512, 512], "must be square_hd"),
        ("image_size", {"width": 513}, "a multiple of 32 from 512 to 2048; got 513"),
        ("image_size", {"height": 10**30}, "a multiple of 32 from 512 to 2048; got 1000000000000000000000000000000"),
        ("image_size", {"width": True}, "a multiple of 32"),
        ("output_format", "gif", "must be one of png, jpeg, webp; got 'gif'"),
        ("output_format", {}, "must be one of png, jpeg, webp"),
        ("enable_prompt_expansion", "yes", "must be true or false; got 'yes'"),
        ("enable_safety_checker", 1, "must be true or false; got 1"),
        ("num_inference_steps", 0, "an integer from 1 to 8; got 0"),
        ("num_inference_steps", 9, "an integer from 1 to 8; got 9"),
        ("num_inference_steps", 1e308, "an integer from 1 to 8; got 1e+308"),
        ("num_inference_steps", "8", "an integer from 1 to 8; got '8'"),
        ("seed", 0, "an integer from 1; got 0"),
        ("seed", -(10**40), "an integer from 1; got -1"),
        ("seed", 1.5, "an integer from 1; got 1.5"),
        ("num_images", 5, "an integer from 1 to 4; got 5"),
        ("num_images", 2.5, "an integer from 1 to 4; got 2.5"),
        ("acceleration", "warp", "must be one of none, regular, high; got 'warp'"),
        ("response_format", "ftp", "must be one of url, b64_json; got 'ftp'"),
        ("stream", "true", "must be true or false; got 'true'"),
        ("partial_images", 4, "an integer from 0 to 3; got 4"),
        ("n", 9, "an integer from 1 to 4; got 9"),
        ("size", "big", 'must be "auto" or "WIDTHxHEIGHT"; got \'big\''),
    ],
    ids=lambda value: str(value)[:24].encode("ascii", "replace").decode(),
)
def test_wrong_values_name_the_member_the_value_and_the_rule(
    server: Serving, member: str, value: object, rule: str
) -> None:
    found = refused(post(server, json.dumps(BODY | {member: value}).encode()), 400, member, rule)
    (issue,) = found["error"]["data"]["issues"]
    assert issue["path"][0] == member
    assert found["error"]["param"].partition(".")[0] == member


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"null", "got None"),
        (b'"text"', "JSON object"),
        (b"\xff\xfe{}", "utf-8"),
        (b'{"prompt": NaN}', "NaN is not JSON"),
        (b'{"seed": -Infinity}', "-Infinity is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "the member 'prompt' comes twice"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "JSON"),
        (b"[" * DEEP + b"]" * DEEP, "too deeply nested"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "too deeply nested"),
        (b"{" + b",".join(b'"%d":0' % number for number in range(90_000)) + b',"0":0}', "the member '0' comes twice"),
        (b"{" + b",".join(b'"%d":0' % number for number in range(90_000)) + b',"89999":0}', "comes twice"),
        (b'{"prompt": "a\nb"}', "JSON"),
        (b'{"prompt": "' + b"x" * (MAX_BODY_BYTES - 100) + b'"}', "at most 4000 characters"),
    ],
    ids=lambda value: value[:24].decode("ascii", "replace") if isinstance(value, bytes) else "",
)
def test_bodies_that_are_no_request(server: Serving, raw: bytes, words: str) -> None:
    refused(post(server, raw), 400, words)


def test_numbers_beyond_floats(server: Serving) -> None:
    raw = json.dumps(BODY).encode()[:-1]
    refused(post(server, raw + b', "num_images": 1e400}'), 400, "num_images", "from 1 to 4")
    refused(post(server, raw + b', "num_inference_steps": -1e999}'), 400, "num_inference_steps", "from 1 to 8")


def test_bodies_that_are_too_large(server: Serving) -> None:
    refused(post(server, b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}'), 413, str(MAX_BODY_BYTES))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx", "\xff"])
def test_other_content_types(server: Serving, kind: str) -> None:
    refused(post(server, json.dumps(BODY).encode(), content_type=kind), 415, "application/json")


@pytest.mark.parametrize(
    "key",
    [KEY[:8] + "0" * 24, "0" * 32, KEY[:-1], KEY + "0", KEY.upper(), "", KEY[:8], "\xfc" * 32, "a" * 10_000],
    ids=["somebody's prefix", "unknown", "short", "long", "upper case", "none", "prefix", "not ASCII", "huge"],
)
def test_keys_that_are_none(server: Serving, key: str) -> None:
    found = refused(post(server, json.dumps(BODY).encode(), authorization=f"Bearer {key}"), 401, "valid API key")
    if len(key) == 32 and key.isascii() and key == key.lower():  # somebody else's prefix tells no more than nobody's
        assert "There is no such key" in found["message"]


@pytest.mark.parametrize("value", ["", "a" * 256, "\xe4", "a\tb"])
def test_idempotency_keys_that_are_none(server: Serving, value: str) -> None:
    refused(post(server, json.dumps(BODY).encode(), idempotency_key=value), 400, "idempotency-key")


# --- below HTTP's good manners ---------------------------------------------------------------------------------------


def raw(server: Serving, *parts: bytes, end: bool = False, timeout_s: float = 30) -> bytes:
    """Send bytes, and read until the server closes or has answered.

    Args:
        end: close our side after sending.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):  # it may refuse before it has read everything
            for part in parts:
                connection.sendall(part)
            if end:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):
                answer += more
        return answer


def head(*lines: str, key: str = KEY) -> bytes:
    return "\r\n".join(
        [f"POST {GENERATIONS} HTTP/1.1", "host: x", f"authorization: Bearer {key}", "content-type: application/json",
         *lines, "", ""]
    ).encode()  # fmt: skip


def test_chunks_without_end(server: Serving) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    assert raw(server, head("transfer-encoding: chunked"), *[chunk] * 40).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "sent",
    [
        head("content-length: 500") + b'{"model": "alibaba/z-image-turbo", "prompt": "',
        head("transfer-encoding: chunked") + b'2e\r\n{"model": "alibaba/z-image-turbo", "prompt": "',
        head("content-length: 10"),
        head("content-length: 10").replace(b"\r\n\r\n", b"\r\n"),
        b"",
    ],
    ids=["half a body", "half a chunk", "no body", "half a head", "nothing"],
)
def test_senders_that_stop_in_the_middle(server: Serving, sent: bytes) -> None:
    assert b" 200 " not in raw(server, sent, end=True)


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: -1",),
        ("content-length: 5", "content-length: 6"),
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: zipped",),
        ("content-length: 99999999999999999999",),
    ],
    ids=str,
)
def test_lengths_that_contradict(server: Serving, lines: tuple[str, ...]) -> None:
    assert b" 200 " not in raw(server, head(*lines) + b"{}{}{", end=True)


def test_a_header_without_end(server: Serving) -> None:
    """Twenty megabytes: refused long before."""
    assert raw(server, head().removesuffix(b"\r\n") + b"x-long: ", *[b"a" * 2**20] * 20)[:12] in (b"HTTP/1.1 431", b"")


def test_senders_that_take_their_time_hold_nobody_up(server: Serving) -> None:
    """Bodies that never come: each is told so after a while, and others are answered meanwhile."""
    sent = head("content-length: 500") + b"{"
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        slow = [pool.submit(raw, server, sent, timeout_s=6 * BODY_TIMEOUT_S) for _ in range(30)]
        assert all(server.ask("GET", "/v1/models").status == 200 for _ in range(20))
        assert not any(one.done() for one in slow)
        assert all(one.result().startswith(b"HTTP/1.1 400") for one in slow)


def test_headers_cannot_be_smuggled_into_answers(server: Serving) -> None:
    for name in ("x-client-request-id", "idempotency-key", "origin", "host"):
        for value in ("a%0d%0ax-evil: 1", "a\rx-evil: 1", "a\x0bx-evil: 1", "a\x00x-evil: 1"):
            answer = raw(server, f"GET /healthz HTTP/1.1\r\nhost: x\r\n{name}: {value}\r\n\r\n".encode("latin-1"))
            names = [line.partition(b":")[0].lower() for line in answer.split(b"\r\n")]
            assert b"x-evil" not in names
            assert b"\rx-evil" not in answer


def test_hosts_that_are_none_reach_no_address(process: Serving) -> None:
    sent = json.dumps(BODY).encode()
    for host in ('x"><script>', "a b", "x/../y", "user@x", ""):
        answer = process.ask("POST", GENERATIONS, sent, {"host": host})
        if answer.status == 200:
            assert answer.json()["data"][0]["url"].startswith(f"{process.url}/files/b/")
        else:
            assert answer.status == 400


@pytest.mark.parametrize(
    "path",
    [
        "/files/b/../../etc/passwd", "/files/b/..%2f..%2fetc%2fpasswd", "/files/b/%2e%2e/%2e%2e/etc/passwd",
        "/files/b/..%5c..%5cetc%5cpasswd", "/files/b/%252e%252e%252fetc%252fpasswd", "/files/b//etc/passwd",
        "/files/b/0a84de46/../../records.sqlite", "/files/b/0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png%00.jpeg",
        "/files/b/0a84de46/GTZfn0tOOQzXlC2Wvpzz9.sqlite", "/files/b/" + "a" * 10_000, "/files/b/",
        "/files/../etc/passwd", "/web/../api/app.py", "/web/..%2fapi%2fapp.py", "/model/..%2f..%2fetc%2fpasswd",
        "/v1/keys/..%2f..",
    ],
)  # fmt: skip
def test_paths_that_climb(server: Serving, path: str) -> None:
    sent = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
    answer = raw(server, sent)
    assert answer[9:12] in (b"400", b"401", b"404", b"405", b"414"), answer[:200]
    assert b"root:" not in answer
    assert b"SQLite format" not in answer
    assert b"import " not in answer


def test_a_link_in_the_place_of_a_picture_is_not_followed(server: Serving, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root:")
    link = server.data_dir / "files" / "0a84de46" / "GTZfn0tOOQzXlC2Wvpzz9.png"
    link.parent.mkdir()
    link.symlink_to(secret)
    try:
        assert server.ask("GET", "/files/b/0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png").status == 404
    finally:
        link.unlink()
        link.parent.rmdir()


def test_ranges_without_number(server: Serving) -> None:
    many = "bytes=" + ",".join(f"{number}-{number}" for number in range(1500))
    made = server.ask("GET", "/docs", headers={"range": many})
    assert made.status == 200
    assert server.ask("GET", "/files/b/0a84de46/GTZfn0tOOQzXlC2Wvpzz9.png", headers={"range": many}).status == 404


def test_chunked_requests_are_answered_all_the_same(process: Serving) -> None:
    data = json.dumps(BODY).encode()
    pieces = [b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:10], data[10:])]
    assert raw(process, head("transfer-encoding: chunked"), *pieces, b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_no_record_and_no_log_holds_the_prompt_of_a_picture(process: Serving) -> None:
    for more in ({}, {"stream": True}):
        sent = json.dumps(BODY | more).encode()
        assert process.ask("POST", GENERATIONS, sent, {"idempotency-key": f"of {len(more)}"}).status == 200
    kept = [*process.data_dir.glob("records.sqlite*"), process.log]
    assert len(kept) >= 2
    for file in kept:
        assert SECRET.encode() not in file.read_bytes(), file.name
