"""Jobs on several processes, each of which is one thread."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from lipstream.media import limit_threads

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, *, ordered: bool = True
) -> Iterator[_Result]:
    """`function` of each job, on `workers` processes; in this one where there is one worker, or one job.

    Args:
        ordered: results in the order of the jobs; else as they come.
    """
    if workers == 1 or len(jobs) == 1:
        yield from map(function, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
        yield from (pool.imap if ordered else pool.imap_unordered)(function, jobs)


def _one_thread() -> None:
    """The processes are the threads."""
    torch.set_num_threads(1)
    limit_threads(1)
