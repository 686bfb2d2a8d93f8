"""The queue: what waits together is computed together, a long request stalls no other, a full queue says so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mmrr.serve.batching import Batcher
from mmrr.serve.errors import RefusedError
from mmrr.serve.metrics import Metrics
from mmrr.serve.settings import Limits
from mmrr.serve.turns import Turns
from tests.serve.conftest import QUERY


def batcher(**limits: Any) -> Batcher:
    made = Batcher(Limits(**limits), Metrics(), Turns())
    made.start()
    return made


class Recorder:
    """A computation that answers n with n + 1 and records its groups. It waits until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, requests: Sequence[int]) -> Generator[None, None, list[Any]]:
        self.groups.append(list(requests))
        self.go.wait(10)
        yield
        return [RefusedError(400, "no") if n < 0 else n + 1 for n in requests]


def test_requests_that_wait_are_a_group():
    made, compute = batcher(together=4), Recorder()

    async def ask() -> list[Any]:
        first = asyncio.create_task(made.answer("test", "a", compute, 0))
        await asyncio.sleep(0.2)  # the thread computes it now
        rest = [asyncio.create_task(made.answer("test", key, compute, n)) for n, key in enumerate("aabaaa", 1)]
        await asyncio.sleep(0.1)
        compute.go.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(ask()) == [1, 2, 3, 4, 5, 6, 7]
    assert compute.groups == [[0], [1, 2, 4, 5], [3], [6]]
    made.stop()


def test_cost_limits_a_group_and_an_error_is_of_one_request():
    made, compute = batcher(), Recorder()

    async def ask() -> list[Any]:
        first = asyncio.create_task(made.answer("test", "a", compute, 0))
        await asyncio.sleep(0.2)
        rest = [asyncio.create_task(made.answer("test", "a", compute, n, cost=150)) for n in (1, -1, 3)]
        await asyncio.sleep(0.1)
        compute.go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    answers = asyncio.run(ask())
    assert [answers[0], answers[1], answers[3]] == [1, 2, 4]
    assert isinstance(answers[2], RefusedError)
    assert compute.groups == [[0], [1, -1], [3]]
    made.stop()


def test_a_full_queue_is_429_and_half_of_it_is_left_to_others():
    made, compute = batcher(queue=4), Recorder()

    async def ask() -> list[Any]:
        mine = [asyncio.create_task(made.answer("test", "a", compute, n, client="one")) for n in range(3)]
        others = [asyncio.create_task(made.answer("test", "a", compute, n, client=f"c{n}")) for n in range(3)]
        await asyncio.sleep(0.1)
        compute.go.set()
        return await asyncio.gather(*mine, *others, return_exceptions=True)

    answers = asyncio.run(ask())
    refused = [one for one in answers if isinstance(one, RefusedError)]
    assert [one.status for one in refused] == [429, 429]
    assert all(one.retry_after and one.retry_after >= 1 for one in refused)
    assert isinstance(answers[2], RefusedError)  # the third of one client
    assert isinstance(answers[5], RefusedError)  # the fifth in all
    made.stop()


def test_a_long_request_delays_others_by_one_step():
    made = batcher()
    order: list[str] = []

    def long(requests: Sequence[Any]) -> Generator[None, None, Sequence[Any]]:
        for _ in range(50):
            time.sleep(0.01)
            yield
        order.append("long")
        return requests

    def short(requests: Sequence[Any]) -> Generator[None, None, Sequence[Any]]:
        order.append("short")
        yield from ()
        return requests

    async def ask() -> None:
        slow = asyncio.create_task(made.answer("test", "long", long, 1))
        await asyncio.sleep(0.05)
        await made.answer("test", "short", short, 2)
        await slow

    asyncio.run(ask())
    assert order == ["short", "long"]
    made.stop()


def test_the_time_limit_is_504_and_ends_the_work():
    made = batcher(seconds=0.2)
    steps = []

    def endless(requests: Sequence[Any]) -> Generator[None, None, Sequence[Any]]:
        while True:
            steps.append(1)
            time.sleep(0.02)
            yield

    async def ask() -> None:
        with pytest.raises(RefusedError) as raised:
            await made.answer("test", "a", endless, 1)
        assert raised.value.status == 504
        await asyncio.sleep(0.1)
        done = len(steps)
        await asyncio.sleep(0.2)
        assert len(steps) == done

    asyncio.run(ask())
    made.stop()


def test_a_stopped_server_answers_503():
    made, compute = batcher(), Recorder()

    async def ask() -> None:
        waiting = asyncio.create_task(made.answer("test", "a", compute, 1))
        await asyncio.sleep(0.1)
        compute.go.set()
        await asyncio.to_thread(made.stop)
        with pytest.raises(RefusedError) as raised:
            await made.answer("test", "a", compute, 2)
        assert raised.value.status == 503
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(ask())


def test_turns_are_given_in_order():
    turns, order = Turns(), []

    def work() -> None:
        with turns.turn():
            order.append("other")

    with turns.turn():
        other = threading.Thread(target=work)
        other.start()
        time.sleep(0.1)
        order.append("first")
        turns.let_others()
        order.append("again")
        turns.let_others()  # nobody waits
    other.join()
    assert order == ["first", "other", "again"]


def test_answers_together_are_those_alone(client: TestClient):
    queries = [QUERY, "soil moisture", "rainfall by month", "formatting of a cover", "sensors", "spring"]
    pages = [{"page_id": f"soil.pdf/000{n}"} for n in (1, 2, 3)] + [{"page_id": "thesis.pdf/0001"}]
    asked: list[tuple[str, dict[str, Any]]] = []
    for i, query in enumerate(queries):
        asked.append(("/v1/search", {"query": query}))
        asked.append(("/v1/rerank", {"query": query, "documents": pages[i % 3 :]}))

    def ask(one: tuple[str, dict[str, Any]]) -> Any:
        answer = client.post(one[0], json=one[1])
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    alone = [ask(one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, asked * 3))
    for expected, found in zip(alone * 3, together, strict=True):
        assert len(found) == len(expected)
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                if isinstance(value, float):
                    assert other[name] == pytest.approx(value, abs=1e-4)
                else:
                    assert other[name] == value
