"""Pictures of several requests through the networks together, behind a bounded queue."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from search.query import Query, extract_queries
from server.collection import Collection
from utils import UserError

BATCH = 8  # pictures at once
WAITING = 32  # pictures that may wait


class BusyError(UserError):
    """Too much is waiting; ask again later."""


@dataclass(frozen=True)
class _Job:
    collection: Collection
    query: Query
    result: Future[list[np.ndarray]]


class Batcher:
    """A thread that sends what is waiting through the networks, several pictures at once.

    Parameters
    ----------
    observe : is told the size of each batch
    """

    def __init__(self, observe: Callable[[float], object]) -> None:
        self.observe = observe
        self.jobs: queue.Queue[_Job] = queue.Queue(WAITING)
        threading.Thread(target=self._run, daemon=True, name="network").start()

    def submit(self, collection: Collection, query: Query) -> Future[list[np.ndarray]]:
        """Put a picture in line.

        Returns
        -------
        A future of its features, of each signal 1 x D.

        Raises
        ------
        BusyError : the line is full
        """
        result: Future[list[np.ndarray]] = Future()
        try:
            self.jobs.put_nowait(_Job(collection, query, result))
        except queue.Full:
            raise BusyError("too many pictures are waiting for the network; ask again") from None
        return result

    def _run(self) -> None:
        while True:
            jobs = [self.jobs.get()]
            while len(jobs) < BATCH and not self.jobs.empty():
                jobs.append(self.jobs.get())
            # An update may fall between two of them.
            for collection in {id(job.collection): job.collection for job in jobs}.values():
                self._extract(collection, [job for job in jobs if job.collection is collection])

    def _extract(self, collection: Collection, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if job.result.set_running_or_notify_cancel()]
        if not jobs:
            return
        self.observe(len(jobs))
        try:
            features = extract_queries(
                collection.nets,
                [job.query for job in jobs],
                collection.device,
                collection.database.metadata.settings.AMP,
                BATCH,
            )
            for i, job in enumerate(jobs):
                job.result.set_result([signal[i : i + 1] for signal in features])
        except Exception as error:
            for job in jobs:
                job.result.set_exception(error)
