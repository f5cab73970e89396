"""The bounded memory and the circuit breaker."""

from zturbo.expansion.breaker import CircuitBreaker
from zturbo.expansion.cache import LeastRecent


def test_the_least_recent_is_forgotten() -> None:
    cache: LeastRecent[int] = LeastRecent(limit=2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)
    cache.put("a", 4)
    assert (cache.get("a"), len(cache)) == (4, 2)


def test_failures_in_a_row_open_the_circuit_and_one_call_tries_again_after_the_rest() -> None:
    now = [0.0]
    breaker = CircuitBreaker(failures=2, rest_s=10, clock=lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 9.9
    assert not breaker.allows()
    now[0] = 10.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.failed()
    now[0] = 19.9
    assert not breaker.allows()
    now[0] = 20.0
    assert breaker.allows()
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]
