"""What is kept of sessions and graphs, from however many threads it is asked for."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsa_serve.engines.kept import Kept


@given(most=st.integers(1, 4), keys=st.lists(st.integers(0, 6), max_size=40))
def test_the_last_used_are_kept_and_the_others_made_again(most: int, keys: list[int]):
    made: list[int] = []

    def make(key: int) -> list[int]:
        made.append(key)
        return [key]

    kept = Kept(make, most)
    expected: list[int] = []  # the last used is the last
    for key in keys:
        before = len(made)
        assert kept.get(key) == [key]
        assert (len(made) > before) == (key not in expected)
        expected = [*(old for old in expected if old != key), key][-most:]
    kept.close()


def test_one_is_made_once_for_all_threads_that_wait_for_it():
    made: list[int] = []
    go = threading.Event()

    def make(key: int) -> object:
        assert go.wait(20)
        made.append(key)
        return object()

    kept = Kept(make, 2)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(kept.get, 1) for _ in range(4)]
        go.set()
        assert len({id(future.result(20)) for future in futures}) == 1
    assert made == [1]


def test_those_that_are_there_can_be_had_while_another_is_made():
    go, begun = threading.Event(), threading.Event()

    def make(key: str) -> str:
        if key == "slow":
            begun.set()
            assert go.wait(20)
        return key

    kept = Kept(make, 2)
    kept.get("there")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(kept.get, "slow")
        assert begun.wait(20)
        assert kept.get("there") == "there"
        go.set()
        assert slow.result(20) == "slow"


def test_room_is_made_before_another_is_made():
    """The two together would be more than may be."""

    class Value:
        pass

    there: weakref.WeakSet[Value] = weakref.WeakSet()
    seen: list[int] = []

    def make(key: int) -> Value:
        seen.append(len(there))
        there.add(value := Value())
        return value

    kept: Kept[int, Value] = Kept(make, 2)
    for key in (1, 2, 3, 4):
        kept.get(key)
    assert seen == [0, 1, 1, 1]
    kept.close()
    assert not there


def test_what_could_not_be_made_is_tried_again():
    answers = iter([ValueError("no"), "made"])

    def make(key: int) -> str:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    kept = Kept(make, 1)
    with pytest.raises(ValueError, match="no"):
        kept.get(1)
    assert kept.get(1) == "made"


def test_nobody_waits_where_another_does_meanwhile():
    go = threading.Event()

    def make(key: str) -> str:
        assert key == "slow" or go.wait(20)
        return key

    kept = Kept(make, 2)
    assert kept.get("slow") == "slow"
    assert [kept.get("fast", meanwhile="slow") for _ in range(3)] == ["slow"] * 3
    go.set()
    kept.close()  # waits
    kept = Kept(make, 2)
    assert kept.get("fast", meanwhile="slow") == "fast", "neither was there: the one that was asked for is made"


def test_what_was_made_in_the_background_is_used_once_it_is_there(until):
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key

    kept = Kept(make, 2)
    kept.get("slow")
    until(lambda: kept.get("fast", meanwhile="slow") == "fast")
    assert made == ["slow", "fast"], "once"
    kept.get("other")
    kept.get("slow")
    until(lambda: kept.get("fast", meanwhile="slow") == "fast")
    assert made.count("fast") == 2, "it was dropped, so it is made again"
    kept.close()


def test_what_fails_in_the_background_is_told_and_left_alone(until, caplog: pytest.LogCaptureFixture):
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        if key == "fast":
            raise ValueError("no room")
        return key

    kept = Kept(make, 2)
    kept.get("slow")
    assert kept.get("fast", meanwhile="slow") == "slow"
    until(lambda: "no room" in caplog.text)
    assert [kept.get("fast", meanwhile="slow") for _ in range(9)] == ["slow"] * 9
    kept.close()
    assert made.count("fast") == 1
    assert "ValueError: no room" in caplog.text
