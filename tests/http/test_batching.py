"""The queue before the engine, by itself."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from ptsa_serve.errors import DeadlineExceeded, Internal, Overloaded, ShuttingDown
from ptsa_serve.http.batching import Batcher


class Gate:
    """A run function that holds its first batch until `open` and remembers every batch."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.alone: list[bool] = []
        self.opened = threading.Event()
        self.threads: set[int] = set()

    def __call__(self, items: Sequence[object], alone: bool) -> list[object]:
        self.batches.append(list(items))
        self.alone.append(alone)
        self.threads.add(threading.get_ident())
        self.opened.wait(10)
        if "bad" in items:
            raise ValueError("bad item")
        return [f"ran {item}" for item in items]


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


async def submit(batcher: Batcher, item: object, key: object = "k", deadline: float | None = None):
    return asyncio.ensure_future(batcher.submit(item, key=key, deadline=deadline or soon()))


async def started(gate: Gate, batches: int = 1) -> None:
    while len(gate.batches) < batches:
        await asyncio.sleep(0.002)


def test_lone_item_does_not_wait() -> None:
    batcher = Batcher(lambda items, alone: items, limit=4, max_batch=8)
    try:
        ran = asyncio.run(batcher.submit("x", key=1, deadline=soon()))
        assert (ran.result, ran.batch) == ("x", 1)
        assert ran.queue_ms < 50
    finally:
        batcher.close()


def test_items_that_gathered_run_together_and_in_order(gate: Gate) -> None:
    async def scenario() -> list[str]:
        tasks = [await submit(batcher, "first")]
        await started(gate)
        tasks += [await submit(batcher, n) for n in range(5)]
        await asyncio.sleep(0)
        gate.opened.set()
        return [ran.result for ran in await asyncio.gather(*tasks)]

    batcher = Batcher(gate, limit=8, max_batch=4)
    assert asyncio.run(scenario()) == ["ran first", *(f"ran {n}" for n in range(5))]
    assert gate.batches == [["first"], [0, 1, 2, 3], [4]]
    assert len(gate.threads) == 1
    batcher.close()


def test_keys_are_never_mixed_and_the_oldest_goes_first(gate: Gate) -> None:
    async def scenario() -> None:
        tasks = [await submit(batcher, "first")]
        await started(gate)
        tasks += [await submit(batcher, (key, n), key) for n, key in enumerate("abab")]
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(*tasks)

    batcher = Batcher(gate, limit=8, max_batch=8)
    asyncio.run(scenario())
    assert gate.batches[1:] == [[("a", 0), ("a", 2)], [("b", 1), ("b", 3)]]
    batcher.close()


def test_full_queue_refuses_at_once_with_a_time_to_come_back(gate: Gate) -> None:
    async def scenario() -> Overloaded:
        tasks = [await submit(batcher, "first")]
        await started(gate)
        tasks += [await submit(batcher, n) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit("one too many", key="k", deadline=soon())
        gate.opened.set()
        await asyncio.gather(*tasks)
        return caught.value

    batcher = Batcher(gate, limit=2)
    assert int(asyncio.run(scenario()).headers["Retry-After"]) >= 1
    assert ["one too many"] not in gate.batches
    batcher.close()


def test_cancelled_item_is_never_run_and_frees_its_place(gate: Gate) -> None:
    async def scenario() -> None:
        first = await submit(batcher, "first")
        await started(gate)
        gone = await submit(batcher, "gone")
        await asyncio.sleep(0)
        assert batcher.depth == 1
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert batcher.depth == 0
        gate.opened.set()
        await first

    dropped: list[str] = []
    batcher = Batcher(gate, limit=1, on_drop=dropped.append)
    asyncio.run(scenario())
    batcher.close()
    assert gate.batches == [["first"]]
    assert dropped == ["abandoned"]


def test_item_whose_deadline_passed_in_the_queue_is_not_run(gate: Gate) -> None:
    async def scenario() -> None:
        first = await submit(batcher, "first")
        await started(gate)
        late = await submit(batcher, "late", deadline=soon(0.02))
        await asyncio.sleep(0.05)
        gate.opened.set()
        with pytest.raises(DeadlineExceeded):
            await late
        await first

    batcher = Batcher(gate, limit=4)
    asyncio.run(scenario())
    batcher.close()
    assert gate.batches == [["first"]]


def test_deadline_below_the_measured_run_is_refused_without_running() -> None:
    runs: list[object] = []

    def slow(items: Sequence[object], alone: bool) -> Sequence[object]:
        runs.extend(items)
        time.sleep(0.05)
        return items

    async def scenario() -> None:
        await batcher.submit("measures", key=1, deadline=soon())
        with pytest.raises(DeadlineExceeded):
            await batcher.submit("hopeless", key=1, deadline=soon(0.02))

    batcher = Batcher(slow, limit=4)
    asyncio.run(scenario())
    batcher.close()
    assert runs == ["measures"]


def test_failing_item_does_not_hurt_its_batch(gate: Gate) -> None:
    async def scenario() -> list[object]:
        tasks = [await submit(batcher, "first")]
        await started(gate)
        tasks += [await submit(batcher, item) for item in ("a", "bad", "b")]
        await asyncio.sleep(0)
        gate.opened.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    batcher = Batcher(gate, limit=8, max_batch=8)
    outcome = asyncio.run(scenario())
    batcher.close()
    assert [type(each).__name__ for each in outcome] == ["Ran", "Ran", "Internal", "Ran"]
    assert gate.batches[1:] == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]


def test_engine_that_always_fails_is_called_broken_until_it_works() -> None:
    works = False

    def run(items: Sequence[object], alone: bool) -> Sequence[object]:
        if works:
            return items
        raise ValueError("no")

    async def ask() -> None:
        await batcher.submit("x", key=1, deadline=soon())

    batcher = Batcher(run, limit=4)
    for _ in range(5):
        assert not batcher.broken
        with pytest.raises(Internal):
            asyncio.run(ask())
    assert batcher.broken
    works = True
    asyncio.run(ask())
    assert not batcher.broken
    batcher.close()


def test_closed_batcher_runs_what_waits_and_refuses_the_rest(gate: Gate) -> None:
    async def scenario() -> str:
        first = await submit(batcher, "first")
        await started(gate)
        waiting = await submit(batcher, "waiting")
        await asyncio.sleep(0)
        closing = asyncio.get_running_loop().run_in_executor(None, batcher.close)
        while not batcher._closed:
            await asyncio.sleep(0.002)
        with pytest.raises(ShuttingDown):
            await batcher.submit("new", key="k", deadline=soon())
        gate.opened.set()
        await first
        await closing
        return (await waiting).result

    batcher = Batcher(gate, limit=4)
    assert asyncio.run(scenario()) == "ran waiting"


def test_wrong_number_of_results_is_a_failure_not_a_hang() -> None:
    batcher = Batcher(lambda items, alone: [], limit=2)
    with pytest.raises(Internal):
        asyncio.run(batcher.submit("x", key=1, deadline=soon()))
    batcher.close()


def test_old_measurement_does_not_lock_out_short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    pace: list[Callable[[], None]] = [lambda: time.sleep(0.05)]

    def run(items: Sequence[object], alone: bool) -> Sequence[object]:
        pace[0]()
        return items

    async def scenario() -> None:
        await batcher.submit("slow", key=1, deadline=soon())
        pace[0] = lambda: None
        monkeypatch.setattr("ptsa_serve.http.batching._STALE", 0.0)
        await batcher.submit("fast again", key=1, deadline=soon(0.04))

    batcher = Batcher(run, limit=2)
    asyncio.run(scenario())
    batcher.close()


def test_what_finds_the_engine_busy_runs_side_by_side_once_the_lone_run_has_ended(gate: Gate) -> None:
    both = threading.Barrier(2, timeout=10)

    def run(items: Sequence[object], alone: bool) -> Sequence[object]:
        found = gate(items, alone)
        if not alone:
            both.wait()  # passes only if two runs are in progress
        return found

    async def scenario() -> None:
        tasks = [await submit(batcher, "first")]
        await started(gate)
        tasks += [await submit(batcher, n) for n in range(4)]
        await asyncio.sleep(0.05)
        assert gate.batches == [["first"]], "a lone run has all cores to itself"
        assert batcher.running_for() > 0
        gate.opened.set()
        await asyncio.gather(*tasks)

    batcher = Batcher(run, limit=8, lanes=2)
    asyncio.run(scenario())
    assert sorted(gate.batches[1:]) == [[0], [1], [2], [3]]
    assert gate.alone == [True, False, False, False, False]
    assert len(gate.threads) == 2
    batcher.close()
    assert batcher.running_for() == 0


def test_photos_that_come_one_after_another_are_alone(gate: Gate) -> None:
    gate.opened.set()

    async def scenario() -> None:
        for n in range(3):
            await batcher.submit(n, key="k", deadline=soon())
            await asyncio.sleep(0.02)

    batcher = Batcher(gate, limit=4, lanes=2)
    asyncio.run(scenario())
    batcher.close()
    assert gate.alone == [True, True, True]
