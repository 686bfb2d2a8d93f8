"""The queue before the models: requests that wait together are computed together, in steps, in one thread.

A computation is a generator. After each step another computation has its turn, so a long one delays others by one step
and not by its whole time.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from mmrr.serve.errors import RefusedError, log
from mmrr.serve.metrics import Metrics
from mmrr.serve.settings import Limits
from mmrr.serve.turns import Turns

#: Gets the requests of a group. It yields between steps and returns an answer, or an exception, for each request.
Compute = Callable[[Sequence[Any]], Generator[None, None, Sequence[Any]]]

#: Computations that take turns.
_ACTIVE = 8


@dataclass(eq=False)
class _Waiting:
    """A request in the queue."""

    kind: str
    key: Hashable  # requests of one key are computed together
    compute: Compute
    request: Any
    cost: int  # pages to score
    client: str
    deadline: float
    future: Future[Any] = field(default_factory=Future)

    @property
    def over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.future.cancelled() or time.monotonic() > self.deadline


class Batcher:
    """Runs computations in one thread. ``start`` and ``stop`` it."""

    #: Pages that are scored together: several requests are a group up to this cost.
    MOST_COST = 400

    def __init__(self, limits: Limits, metrics: Metrics, turns: Turns) -> None:
        self._limits, self._metrics, self._turns = limits, metrics, turns
        self._waiting: deque[_Waiting] = deque()
        self._active: deque[tuple[list[_Waiting], Generator[None, None, Sequence[Any]]]] = deque()
        self._clients: dict[str, int] = {}
        self._inside = 0
        self._mean = 0.1  # seconds for a request, a moving mean
        self._condition = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="mmrr-scoring", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits with 503 and end the thread after its step."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout=60)

    async def answer(
        self, kind: str, key: Hashable, compute: Compute, request: Any, *, cost: int = 1, client: str = ""
    ) -> Any:
        """Wait for the answer to a request.

        The parameters: ``kind`` for the metrics; requests of one ``key`` are computed together by ``compute``;
        ``cost`` is the number of pages to score.
        Raises RefusedError: 429 if the queue is full, 504 after the time limit, 503 if the server stops.
        """
        one = _Waiting(kind, key, compute, request, cost, client, time.monotonic() + self._limits.seconds)
        self._enter(one)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(one.future), self._limits.seconds)
        except TimeoutError:
            raise RefusedError(504, f"no answer within {self._limits.seconds:g} s; ask for less, or later") from None

    def _enter(self, one: _Waiting) -> None:
        with self._condition:
            if self._stopped:
                raise RefusedError(503, "the server stops", retry_after=5)
            # Half of the queue is left to other clients.
            own = self._clients.get(one.client, 0)
            if self._inside >= self._limits.queue or (one.client and own >= math.ceil(self._limits.queue / 2)):
                self._metrics.refused.inc()
                seconds = min(30, max(1, math.ceil(self._inside * self._mean)))
                raise RefusedError(429, f"{self._inside} requests wait; ask again later", retry_after=seconds)
            self._clients[one.client] = own + 1
            self._inside += 1
            self._metrics.waiting.set(self._inside)
            self._waiting.append(one)
            self._condition.notify_all()

    def _leave(self, group: list[_Waiting]) -> None:
        with self._condition:
            for one in group:
                self._inside -= 1
                self._clients[one.client] -= 1
                if not self._clients[one.client]:
                    del self._clients[one.client]
            self._metrics.waiting.set(self._inside)

    # In the scoring thread

    def _run(self) -> None:
        while self._admit():
            group, steps = self._active.popleft()
            if all(one.over for one in group):
                steps.close()
                self._leave(group)
                continue
            started = time.monotonic()
            try:
                with self._turns.turn():
                    next(steps)
            except StopIteration as end:
                self._finish(group, list(end.value))
            except Exception as error:
                self._finish(group, [error] * len(group))
            else:
                self._active.append((group, steps))
            seconds = time.monotonic() - started
            self._metrics.step_seconds.labels(group[0].kind).observe(seconds)
            self._mean += 0.05 * (seconds / len(group) - self._mean)
        self._refuse_rest()

    def _admit(self) -> bool:
        """Wait for work, and make the next group active. Returns False when the server stops."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopped or self._waiting or self._active)
            if self._stopped:
                return False
            if self._waiting and len(self._active) < _ACTIVE:
                group = self._take_group()
                self._metrics.together.observe(len(group))
                self._active.append((group, group[0].compute([one.request for one in group])))
        return True

    def _take_group(self) -> list[_Waiting]:
        """The oldest request, and those of its key that fit with it."""
        group: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        cost = 0
        for one in self._waiting:
            fits = len(group) < self._limits.together and cost + one.cost <= self.MOST_COST
            if not group or (one.key == group[0].key and fits):
                group.append(one)
                cost += one.cost
            else:
                rest.append(one)
        self._waiting = rest
        return group

    def _finish(self, group: list[_Waiting], answers: list[Any]) -> None:
        self._leave(group)
        if len(answers) != len(group):
            answers = [RuntimeError(f"{len(answers)} answers to {len(group)} requests")] * len(group)
        for one, answer in zip(group, answers, strict=True):
            if not one.future.set_running_or_notify_cancel():
                continue
            if isinstance(answer, BaseException):
                one.future.set_exception(answer)
            else:
                one.future.set_result(answer)

    def _refuse_rest(self) -> None:
        with self._condition:
            left = [*self._waiting, *(one for group, _ in self._active for one in group)]
            self._waiting.clear()
            self._active.clear()
        if left:
            log.warning("%d requests get no answer, because the server stops", len(left))
        self._finish(left, [RefusedError(503, "the server stops", retry_after=5) for _ in left])
