"""The limits of a key's requests, by a clock that only goes forward."""

import pytest

from zturbo.errors import RateLimited
from zturbo.rates import KeyRates


def test_a_minute_moves_and_each_key_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("zturbo.rates.monotonic", lambda: now)
    rates = KeyRates(per_minute=2)

    def taken(prefix: str) -> int:
        """0, or the seconds until the key may ask again."""
        try:
            with rates.taking(prefix):
                return 0
        except RateLimited as limited:
            return limited.retry_after_s or -1

    assert [taken("a"), taken("a")] == [0, 0]
    now += 20.5
    assert (taken("a"), taken("b")) == (40, 0), "until the first of them is a minute old"
    now += 39.5
    assert [taken("a"), taken("a"), taken("a")] == [0, 0, 60]


def test_a_wall_clock_that_is_set_back_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("zturbo.rates.monotonic", lambda: now)
    rates = KeyRates(per_minute=1)
    with rates.taking("a"):
        pass
    monkeypatch.setattr("time.time", lambda: 0.0)
    now += 60
    with rates.taking("a"):
        pass


def test_each_key_has_its_own_number_at_once() -> None:
    rates = KeyRates(at_once=1)
    with rates.taking("a"), rates.taking("b"), pytest.raises(RateLimited), rates.taking("a"):
        pass
    with rates.taking("a"):
        pass
