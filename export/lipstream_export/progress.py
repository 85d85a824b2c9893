"""How far an export is: its stages, each with a bar of its own."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Called before each step: `done` of the `total` steps of `stage` are finished, and `step` begins."""

    def __call__(self, stage: str, done: int, total: int, step: str = "") -> None: ...


def unseen(stage: str, done: int, total: int, step: str = "") -> None:
    """The `Progress` that shows nothing."""


class Stages:
    """A `Progress` on stderr; when a stage begins, the one before it is complete.

    Args:
        quiet: show nothing, as where stderr is not a terminal.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: tqdm[object] | None = None

    def __call__(self, stage: str, done: int, total: int, step: str = "") -> None:
        if self._bar is None or self._bar.desc != stage:
            self._end()
            form = "{desc} {bar} {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(total=total, initial=done, desc=stage, disable=self._quiet or None, bar_format=form)
            self._bar.desc = stage  # tqdm adds a colon, and leaves it out where it is disabled
        self._bar.n = done
        self._bar.set_postfix_str(step)

    def _end(self, *, complete: bool = True) -> None:
        if self._bar is not None:
            if complete:
                self._bar.n = self._bar.total
                self._bar.set_postfix_str("")
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(complete=error is None)
