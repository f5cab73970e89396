"""Local sessions: the playground works at once for whoever sits at the computer that `zturbo serve` runs on.

The page asks `POST /web/session` for a token and sends it as a bearer, like any other key. What is refused, and why:

- Another site's script. It can send requests to this address, but the browser marks them: `Sec-Fetch-Site` and
  `Origin` are written by the browser and cannot be set by scripts. Only `same-origin` is taken, only with the header
  `x-zturbo-playground`, which no plain form can send, and another origin's script only after a preflight.
- DNS rebinding: a name of the attacker's that points at 127.0.0.1 makes his page "same-origin". `Host` and `Origin`
  must therefore be a loopback address or `localhost`.
- Other computers. The server must listen on loopback, the peer must be on loopback, and a request that passed a proxy
  (it says so in a header) is refused, since the proxy's peer may be anybody.
- Riding on a session. The token is no cookie: no browser adds it by itself, least of all for another port of
  `localhost`, which shares the cookies. So CORS may stay open, as the published API's clients expect.

A token draws and reads its own usage, it never manages keys; it lives in memory, for an hour. One thing is not
refused: another program or user on this computer, who can open the page as well. Where that matters, or behind a proxy
that adds no header, sessions are switched off.
"""

import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import Request

from zturbo.errors import Forbidden
from zturbo.keys import DRAWING, digest
from zturbo.storage.records import Key, Origin

HEADER = "x-zturbo-playground"
MARK = "local_"
"""What a session's token begins with; no API key does."""
LIFETIME_S = 3600
MAX_SESSIONS = 64
"""Open at once; the oldest goes first."""
KEY_PREFIX = "local"
"""The prefix of the key that sessions stand for, in the log and in usage."""
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
HINT = "paste an API key into the playground; `zturbo serve` prints one at its first start"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(:\d{1,5})?", re.IGNORECASE | re.ASCII)


class LocalSessions:
    """The sessions of one server process.

    Args:
        host: the address that the server listens on.
        enabled: False refuses every session.
        clock: seconds that never go back.
    """

    def __init__(self, host: str, enabled: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.granted = enabled and is_loopback(host)
        """Whether a loopback page of this server's own gets a session at all."""
        self._clock = clock
        self._ends: OrderedDict[bytes, float] = OrderedDict()  # digest of the token -> when it ends, oldest first
        self._created_ms = time.time_ns() // 1_000_000

    def open(self, request: Request) -> str:
        """A new token for the page that asks.

        Raises:
            Forbidden: the request does not surely come from this server's own page on this computer.
        """
        if reason := self._refusal(request):
            raise Forbidden(f"no local session: {reason}", HINT)
        token = MARK + secrets.token_urlsafe(32)
        self._forget_ended()
        while len(self._ends) >= MAX_SESSIONS:
            self._ends.popitem(last=False)
        self._ends[digest(token)] = self._clock() + LIFETIME_S
        return token

    def key_of(self, token: str) -> Key | None:
        """The key that a token stands for while its session lasts.

        Tokens are found by their digest, so that the time of a look-up tells nothing of the token.
        """
        if not token.startswith(MARK) or not token.isascii():
            return None
        self._forget_ended()
        if (found := digest(token)) not in self._ends:
            return None
        return Key(
            prefix=KEY_PREFIX, digest=found, name="playground on this computer", created_ms=self._created_ms,
            scopes=frozenset(DRAWING),
        )  # fmt: skip

    def _forget_ended(self) -> None:
        while self._ends and next(iter(self._ends.values())) <= self._clock():
            self._ends.popitem(last=False)

    def _refusal(self, request: Request) -> str:
        """Why a request gets no session, or "" where it gets one."""
        headers, host = request.headers, request.headers.get("host", "")
        if not self.granted:
            return "this server grants none, because it listens beyond this computer or was told not to"
        if request.client is None or not is_loopback(request.client.host):
            return "the request comes from another computer"
        if any(name in headers for name in FORWARDED):
            return "the request passed a proxy"
        if not is_loopback(_name_of(host)):
            return f"the page was opened as {host[:80]!r}, which is no loopback address"
        if headers.get("origin") != f"{request.url.scheme}://{host}" or headers.get("sec-fetch-site") != "same-origin":
            return "the request comes from a page of another origin, or from no page"
        if HEADER not in headers:
            return f"the header {HEADER} is missing"
        return ""


def origin_of(key: Key) -> Origin:
    """What the log calls the origin of a key's requests."""
    return "playground" if key.prefix == KEY_PREFIX else "api"


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this computer, whoever resolves it.

    Names other than `localhost` do not count, whatever they resolve to just now.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _name_of(host: str) -> str:
    """The `Host` header's name or address, without port and brackets; "" for what is no host."""
    match = _HOST.fullmatch(host)
    return match[1].strip("[]") if match else ""
