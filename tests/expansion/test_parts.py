"""The bounded memory, the circuit breaker, and what became of a prompt."""

from zturbo.expansion.breaker import CircuitBreaker
from zturbo.expansion.cache import LeastRecent
from zturbo.expansion.expansion import Expansion

SPOTS = ("It is on the left.", "It is on the right.", "It is in the middle of it all.")


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


def test_each_seed_has_its_own_composition_whatever_was_asked_before() -> None:
    made = Expansion.of("a cat", "a cat. A forest.", "local").arranged(SPOTS, len("a cat."))
    texts = [made.for_seed(seed).text for seed in range(6)]
    assert texts == [f"a cat. {spot} A forest." for spot in SPOTS] * 2
    assert made.for_seed(4).for_seed(0).for_seed(2).text == texts[2]
    assert made.for_seed(2**32 - 1).text in texts


def test_a_prompt_that_gets_a_composition_alone_is_expanded() -> None:
    made = Expansion.of("A cat.", "A cat.", "local").arranged(SPOTS, len("A cat."))
    assert (made.applied, made.reason) == (True, "")
    assert made.for_seed(1).text == f"A cat. {SPOTS[1]}"


def test_without_compositions_a_seed_changes_nothing() -> None:
    made = Expansion.of("a cat", "a cat. A forest.", "local")
    assert made.for_seed(7) == made
