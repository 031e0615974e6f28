"""Embed the texts of concurrent requests together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

Embedded = tuple[np.ndarray, np.ndarray]  # vectors ``(n, D)`` and the tokens of each text ``(n,)``
Embed = Callable[[Sequence[str], "str | None"], Embedded]


@dataclass(frozen=True)
class _Job:
    texts: Sequence[str]
    side: str | None
    result: asyncio.Future[Embedded]


class Batcher:
    """Runs a model in one thread, on the texts of as many waiting requests as fit in a batch.

    No request waits for a batch to fill: whatever waits when the model is free goes in.

    Args:
        embed: Embeds texts of one side: vectors ``(n, D)``, and the tokens of each text ``(n,)``.
        size: Texts per batch.
        observe: Called with the number of texts of each batch.
    """

    def __init__(self, embed: Embed, size: int, observe: Callable[[int], object] = lambda texts: None) -> None:
        self.size = size
        self._embed = embed
        self._observe = observe
        self._waiting: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to work; there must be a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    def stop(self) -> None:
        """Stop after the current batch."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def is_working(self) -> bool:
        """Whether requests are answered."""
        return self._task is not None and not self._task.done()

    @property
    def waiting(self) -> int:
        """Number of texts that wait for the model."""
        return sum(len(job.texts) for job in self._waiting)

    async def embed(self, texts: Sequence[str], side: str | None) -> Embedded:
        """Embed at most ``size`` texts in a batch with those of other requests."""
        result: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(texts, side, result))
        self._arrived.set()
        return await result

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            try:
                await self._run(batch)
            except Exception:  # perhaps the texts of one request alone: the others should not fail with it
                for job in batch:
                    try:
                        await self._run([job])
                    except Exception as error:
                        _settle(job, error)

    def _next_batch(self) -> list[_Job]:
        """Take the oldest job and those of the same side that fit in its batch; the rest keep their order."""
        first, rest = self._waiting.popleft(), deque[_Job]()
        batch, count = [first], len(first.texts)
        for job in self._waiting:
            if job.side == first.side and count + len(job.texts) <= self.size:
                batch.append(job)
                count += len(job.texts)
            else:
                rest.append(job)
        self._waiting = rest
        if not rest:
            self._arrived.clear()
        return batch

    async def _run(self, batch: list[_Job]) -> None:
        texts = [text for job in batch for text in job.texts]
        self._observe(len(texts))
        loop = asyncio.get_running_loop()
        vectors, tokens = await loop.run_in_executor(self._thread, self._embed, texts, batch[0].side)
        start = 0
        for job in batch:
            end = start + len(job.texts)
            _settle(job, (vectors[start:end], tokens[start:end]))
            start = end


def _settle(job: _Job, outcome: Embedded | Exception) -> None:
    if job.result.done():  # the request was cancelled
        return
    if isinstance(outcome, Exception):
        job.result.set_exception(outcome)
    else:
        job.result.set_result(outcome)
