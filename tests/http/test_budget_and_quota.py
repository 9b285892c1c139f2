"""The budget of bytes and the quota of a client."""

import asyncio
from concurrent.futures import Future

import pytest

from ptsa_serve.errors import TooManyRequests
from ptsa_serve.http.budget import Memory, MemoryBudget
from ptsa_serve.http.quota import Quota


def test_budget_is_never_exceeded_and_all_get_through() -> None:
    async def scenario() -> int:
        budget = MemoryBudget(10)
        held = worst = 0

        async def use(amount: int) -> None:
            nonlocal held, worst
            async with budget.reserve(amount):
                held += amount
                worst = max(worst, held)
                await asyncio.sleep(0.001)
                held -= amount

        await asyncio.gather(*(use(amount) for amount in (6, 5, 4, 3, 10, 1, 7, 2) * 3))
        assert budget.free == 10
        return worst

    assert 0 < asyncio.run(scenario()) <= 10


def test_more_than_the_budget_means_all_of_it() -> None:
    async def scenario() -> int:
        budget = MemoryBudget(10)
        async with budget.reserve(1000):
            return budget.free

    assert asyncio.run(scenario()) == 0


def test_first_come_is_first_served_though_a_small_one_would_fit() -> None:
    async def scenario() -> list[str]:
        budget, order = MemoryBudget(10), []

        async def use(name: str, amount: int) -> None:
            async with budget.reserve(amount):
                order.append(name)
                await asyncio.sleep(0.001)

        await asyncio.gather(use("first", 8), use("big", 9), use("small", 1))
        return order

    assert asyncio.run(scenario()) == ["first", "big", "small"]


def test_cancelled_wait_gives_nothing_away_and_blocks_nobody() -> None:
    async def scenario() -> int:
        budget = MemoryBudget(10)
        async with budget.reserve(10):
            waiting = asyncio.ensure_future(budget.reserve(10).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(1), budget.reserve(10):
            pass
        return budget.free

    assert asyncio.run(scenario()) == 10


def test_wait_cancelled_in_the_moment_of_its_grant_returns_the_bytes() -> None:
    async def scenario() -> int:
        budget = MemoryBudget(10)
        async with budget.reserve(10):
            waiting = asyncio.ensure_future(budget.reserve(10).__aenter__())
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return budget.free

    assert asyncio.run(scenario()) == 10


def test_lease_gives_back_a_part_and_then_the_rest_once() -> None:
    async def scenario() -> list[int]:
        budget, free = MemoryBudget(10), []
        lease = await budget.lease(8)
        for step in (lambda: lease.shrink(3), lambda: lease.shrink(9), lease.release, lease.release):
            step()
            free.append(budget.free)
        return free

    assert asyncio.run(scenario()) == [7, 7, 10, 10]


def test_lease_is_held_while_a_thread_still_uses_its_bytes() -> None:
    async def scenario() -> list[int]:
        budget, work, free = MemoryBudget(10), Future(), []
        lease = await budget.lease(8)
        lease.outlive(work)
        lease.release()
        free.append(budget.free)
        work.set_result(None)
        await asyncio.sleep(0)
        free.append(budget.free)
        return free

    assert asyncio.run(scenario()) == [2, 10]


def test_large_photos_leave_a_share_to_small_ones() -> None:
    async def scenario() -> int:
        memory = Memory(1024)
        await memory.photos(600).lease(600)
        await memory.bodies.lease(1000)
        async with asyncio.timeout(1):
            for _ in range(8):
                await memory.photos(32).lease(32)
        return memory.held

    assert asyncio.run(scenario()) == 600 + 128 + 256


def test_quota_counts_each_client_by_itself_and_refills_evenly() -> None:
    now = 0.0
    quota = Quota(2, clock=lambda: now)
    quota.take("a")
    quota.take("a")
    quota.take("b")
    with pytest.raises(TooManyRequests) as caught:
        quota.take("a")
    assert caught.value.headers["Retry-After"] == "30"
    now = 30.0
    quota.take("a")
    with pytest.raises(TooManyRequests):
        quota.take("a")


def test_quota_forgets_the_client_unseen_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsa_serve.http.quota._CLIENTS", 2)
    quota = Quota(1, clock=lambda: 0.0)
    for client in ("a", "b", "c"):
        quota.take(client)
    quota.take("a")
    with pytest.raises(TooManyRequests):
        quota.take("c")
