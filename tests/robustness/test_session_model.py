"""Calls in random order against a model of the session as documented in docs/session.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lipstream.errors import AudioFormatError, BackpressureError, SessionClosedError
from numpy_stream import NumberedReference, OpenSession, noise

RATES = (8_000, 16_000, 44_100)


class Session(RuleBasedStateMachine):
    """The model: pending samples of each segment, frames taken, and the position of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = OpenSession(max_pending=3, reference=NumberedReference(faceless=5))
        self.session = self.opened.session
        self.waiting: list[list[int]] = []  # of each segment: [rate, samples, frames taken, flushed]
        self.segment = self.taken = 0
        self.closed = False

    @rule(samples=st.integers(0, 20_000), rate=st.sampled_from(RATES))
    def push(self, samples: int, rate: int) -> None:
        if self.closed:
            with pytest.raises(SessionClosedError):
                self.session.push_audio(noise(samples), rate)
            return
        try:
            assert self.session.push_audio(noise(samples), rate) == samples
        except BackpressureError:
            return
        except AudioFormatError:
            assert self.waiting
            assert not self.waiting[-1][3]
            assert self.waiting[-1][0] != rate
            return
        if samples:
            if not self.waiting or self.waiting[-1][3]:
                self.waiting.append([rate, 0, 0, 0])
            self.waiting[-1][1] += samples

    @rule(bad=st.sampled_from([np.array([np.nan]), np.zeros(3, np.int32), "sound", np.zeros((2, 2, 2))]))
    def push_nonsense(self, bad: object) -> None:
        with pytest.raises((AudioFormatError, SessionClosedError)):
            self.session.push_audio(bad, 16_000)  # type: ignore[arg-type]

    @rule()
    def flush(self) -> None:
        if self.closed:
            with pytest.raises(SessionClosedError):
                self.session.flush()
            return
        self.session.flush()
        if self.waiting:
            self.waiting[-1][3] = 1

    @rule()
    def interrupt(self) -> None:
        if self.closed:
            with pytest.raises(SessionClosedError):
                self.session.interrupt()
            return
        assert self.session.interrupt() == self.taken / 25
        self.segment += len(self.waiting)
        self.waiting.clear()

    @rule(most=st.integers(1, 40))
    def take(self, most: int) -> None:
        if self.closed:
            with pytest.raises(SessionClosedError):
                list(self.session)
            return
        for frame in self.session:
            rate, samples, taken, flushed = self.waiting[0]
            frames = (samples * 25 + (rate - 1) * flushed) // rate
            assert (frame.index, frame.segment) == (self.taken, self.segment)
            assert len(frame.audio) == (taken + 1) * rate // 25 - taken * rate // 25
            assert frame.end_of_segment == bool(flushed and taken + 1 == frames)
            assert frame.bypassed == (self.taken < 5)
            if frame.bypassed:
                assert (frame.image == self.taken).all()
            self.taken += 1
            self.waiting[0][2] += 1
            if frame.end_of_segment:
                self.waiting.pop(0)
                self.segment += 1
            most -= 1
            if not most:
                return
        # All ready frames were taken: the rest has not been flushed and is less than a chunk.
        assert not any(flushed for *_, flushed in self.waiting)
        if self.waiting:
            rate, samples, taken, _ = self.waiting[0]
            assert samples * 25 // rate - taken <= 12 + 2

    @precondition(lambda self: not self.closed)
    @rule(sure=st.integers(0, 15))
    def close(self, sure: int) -> None:
        if sure == 0:
            self.session.close()
            self.closed = True

    @invariant()
    def reference_is_open_while_the_session_is(self) -> None:
        assert self.opened.reference.closed == self.closed


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
