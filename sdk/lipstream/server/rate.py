"""How often something may happen: token buckets by key, for requests, failed logins and lines of the log."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_KEYS = 4096


class TokenBuckets:
    """One bucket for each key, of which the least recently used are forgotten beyond 4096.

    Args:
        rate: per second. burst: at once after a pause. now: a clock in seconds.
    """

    def __init__(self, rate: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> bool:
        """Take one from the bucket of `key`; False if it is empty."""
        now = self._now()
        left, since = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + self._rate * (now - since))
        taken = left >= 1
        self._buckets[key] = left - taken, now
        while len(self._buckets) > _MOST_KEYS:
            self._buckets.popitem(last=False)
        return taken


class LogBudget(logging.Filter):
    """Lets so many lines of a log pass in a second; what was left out is counted in the next line that passes."""

    def __init__(self, rate: float = 20, burst: float = 200) -> None:
        super().__init__()
        self._buckets = TokenBuckets(rate, burst)
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._buckets.take(""):
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} (and {self._left_out} lines left out)", ()
            self._left_out = 0
        return True
