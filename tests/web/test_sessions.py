"""Local sessions are granted to this server's own page on this computer, and to nobody else."""

import asyncio
from collections.abc import Iterator

import httpx2
import pytest
from starlette.requests import Request

from tests.web.conftest import KEY, Playground, serving
from zturbo.api import sessions
from zturbo.api.sessions import LIFETIME_S, MAX_SESSIONS, LocalSessions, is_loopback
from zturbo.errors import Forbidden

GOOD = {
    "host": "127.0.0.1:8000",
    "origin": "http://127.0.0.1:8000",
    "sec-fetch-site": "same-origin",
    "x-zturbo-playground": "1",
}
BODY = {"model": "alibaba/z-image-turbo", "prompt": "a cat", "image_size": "square"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def asking(peer: str | None = "127.0.0.1", **headers: str | None) -> Request:
    """The page's own request, with these headers (`_` for `-`) changed, or taken away by None."""
    sent = GOOD | {name.replace("_", "-"): value for name, value in headers.items()}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items() if value is not None]
    return Request(
        {"type": "http", "scheme": "http", "server": ("127.0.0.1", 8000), "path": "/web/session", "headers": raw,
         "client": (peer, 50000) if peer else None}
    )  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.8.9.1:1"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_the_own_page_on_this_computer_gets_a_session(host: str, peer: str) -> None:
    local = LocalSessions("127.0.0.1")
    key = local.key_of(local.open(asking(peer, host=host, origin=f"http://{host}")))
    assert key is not None
    assert key.scopes == {"model:image", "safety:off"}
    assert sessions.origin_of(key) == "playground"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"origin": "http://evil.example"}, "another origin"),
        ({"origin": "http://localhost:8000"}, "another origin"),
        ({"origin": "http://127.0.0.1:3000"}, "another origin"),
        ({"origin": "https://127.0.0.1:8000"}, "another origin"),
        ({"origin": "null"}, "another origin"),
        ({"origin": None}, "from no page"),
        ({"sec_fetch_site": "cross-site"}, "another origin"),
        ({"sec_fetch_site": "same-site"}, "another origin"),
        ({"sec_fetch_site": "none"}, "another origin"),
        ({"sec_fetch_site": None}, "from no page"),
        ({"x_zturbo_playground": None}, "x-zturbo-playground"),
        ({"host": "evil.example:8000", "origin": "http://evil.example:8000"}, "no loopback address"),
        ({"host": "127.0.0.1.evil.example", "origin": "http://127.0.0.1.evil.example"}, "no loopback address"),
        ({"host": "localhost.evil.example", "origin": "http://localhost.evil.example"}, "no loopback address"),
        ({"host": "localhost@evil.example", "origin": "http://localhost@evil.example"}, "no loopback address"),
        ({"host": "192.168.1.5:8000", "origin": "http://192.168.1.5:8000"}, "no loopback address"),
        ({"host": "0.0.0.0:8000", "origin": "http://0.0.0.0:8000"}, "no loopback address"),
        ({"host": "2130706433", "origin": "http://2130706433"}, "no loopback address"),
        ({"host": "", "origin": "http://"}, "no loopback address"),
        ({"host": None}, "no loopback address"),
        ({"peer": "192.168.1.9"}, "another computer"),
        ({"peer": None}, "another computer"),
        *(({name: "192.0.2.1"}, "a proxy") for name in sessions.FORWARDED),
    ],
    ids=str,
)
def test_everybody_else_is_refused(changed: dict[str, str | None], reason: str) -> None:
    with pytest.raises(Forbidden, match=reason) as refused:
        LocalSessions("127.0.0.1").open(asking(**changed))
    assert "paste an API key" in refused.value.hint


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_a_server_that_listens_to_others_grants_none(host: str) -> None:
    assert not LocalSessions(host).granted
    with pytest.raises(Forbidden, match="grants none"):
        LocalSessions(host).open(asking())


def test_sessions_can_be_switched_off() -> None:
    with pytest.raises(Forbidden, match="grants none"):
        LocalSessions("127.0.0.1", enabled=False).open(asking())


def test_a_session_ends_by_itself() -> None:
    clock = Clock()
    local = LocalSessions("localhost", clock=clock)
    token = local.open(asking())
    clock.now += LIFETIME_S - 1
    assert local.key_of(token) is not None
    clock.now += 1
    assert local.key_of(token) is None


def test_only_whole_tokens_count() -> None:
    local = LocalSessions("localhost")
    token = local.open(asking())
    for wrong in ("", "local_", token[:-1], token + "x", token.upper(), token.removeprefix("local_"), "local_\xfc"):
        assert local.key_of(wrong) is None
    assert LocalSessions("localhost").key_of(token) is None


def test_tokens_are_not_kept_and_do_not_pile_up() -> None:
    local = LocalSessions("localhost")
    tokens = [local.open(asking()) for _ in range(MAX_SESSIONS + 1)]
    assert len(set(tokens)) == len(tokens)
    assert [local.key_of(token) is not None for token in tokens] == [False] + [True] * MAX_SESSIONS
    assert not any(token in repr(vars(local)) for token in tokens)


@pytest.mark.parametrize(
    "host", ["localhost.", "127.1", "127.0.0.1:80", "fe80::1%lo", "[::1]", "loopback", "1.127.0.0"]
)
def test_what_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)


# --- over the wire: the routes, the API behind them, and the headers in between ---


@pytest.fixture(scope="module")
def client(playground: Playground) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=playground.url) as found:
        yield found


def headers_of(playground: Playground, **changed: str) -> dict[str, str]:
    own = {"origin": playground.url, "sec-fetch-site": "same-origin", "x-zturbo-playground": "1"}
    return own | {name.replace("_", "-"): value for name, value in changed.items()}


def test_a_token_draws_but_does_not_manage(client: httpx2.Client, playground: Playground) -> None:
    answer = client.post("/web/session", headers=headers_of(playground))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    bearer = {"authorization": f"Bearer {answer.json()['token']}"}
    assert client.post("/v1/images/generations", json=BODY, headers=bearer).status_code == 200
    assert client.get("/v1/keys", headers=bearer).status_code == 403


def test_the_log_says_where_requests_came_from(client: httpx2.Client, playground: Playground) -> None:
    token = client.post("/web/session", headers=headers_of(playground)).json()["token"]
    for bearer, origin in ((token, "playground"), (KEY, "api")):
        answer = client.post("/v1/images/generations", json=BODY, headers={"authorization": f"Bearer {bearer}"})
        ledger = playground.app.state.service.records.ledger
        row = asyncio.run(ledger.get(answer.headers["x-request-id"]))
        assert row.request.origin == origin


def test_other_sites_are_told_nothing(client: httpx2.Client, playground: Playground) -> None:
    for headers in (headers_of(playground, origin="http://evil.example"), {}, {"cookie": "session=1"}):
        answer = client.post("/web/session", headers=headers)
        assert answer.status_code == 403
        assert "local_" not in answer.text


def test_rebinding_is_refused(client: httpx2.Client, playground: Playground) -> None:
    name = playground.url.replace("127.0.0.1", "evil.example")
    answer = client.post("/web/session", headers=headers_of(playground, host=name.removeprefix("http://"), origin=name))
    assert answer.status_code == 403


def test_nothing_but_the_bearer_is_authority(client: httpx2.Client, playground: Playground) -> None:
    """A request that a foreign page can make the browser send carries no token, so it draws nothing."""
    token = client.post("/web/session", headers=headers_of(playground)).json()["token"]
    for sent in ({"cookie": f"token={token}"}, {"x-zturbo-playground": token}, {"authorization": f"Basic {token}"}):
        assert client.post("/v1/images/generations", json=BODY, headers=sent).status_code == 401
    assert client.post(f"/v1/images/generations?token={token}", json=BODY).status_code == 401


def test_behind_an_address_of_its_own_there_are_none() -> None:
    """A public address means a proxy, and behind one everybody comes from loopback."""
    with serving(public_url="https://pictures.example") as public:
        assert httpx2.post(f"{public.url}/web/session", headers=headers_of(public)).status_code == 403
