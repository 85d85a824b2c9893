"""Jobs on several processes with one thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from lipstream.media import limit_threads

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int = 0, *, ordered: bool = True
) -> Iterator[_Result]:
    """`function` of each job, on several processes; with one worker, or one job, in this process.

    Args:
        function: of a module, so that other processes can import it.
        workers: processes, 0 for one per core; no more are started than there are jobs.
        ordered: results in the order of the jobs; else in the order of completion.
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
        yield from (pool.imap if ordered else pool.imap_unordered)(function, jobs)


def _one_thread() -> None:
    """Limit this process to one thread: the processes already use all cores."""
    torch.set_num_threads(1)
    limit_threads(1)
