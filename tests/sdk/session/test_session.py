"""A session in one thread: its frames depend only on the audio, not on how it was split into pushes."""

from __future__ import annotations

import gc
import sys
import time
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.backends.stepped import to_planes
from lipstream.errors import AudioFormatError, BackpressureError, ConfigError, SessionClosedError
from lipstream.media import StreamResampler
from lipstream.session import Frame
from lipstream.session.reference import stack_crops
from numpy.typing import NDArray
from numpy_stream import (
    AUDIO,
    GEOMETRY,
    SIDE,
    NumberedReference,
    NumpyStream,
    OpenSession,
    assert_same_frames,
    noise,
    open_session,
    speak,
)

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


def as_kind(samples: NDArray[np.float32], kind: str) -> NDArray[Any]:
    return (samples * 32767).astype(np.int16) if kind == "int16" else samples.astype(kind)


@settings(max_examples=30)
@given(
    rate=st.sampled_from(RATES),
    seconds=st.floats(0.05, 1.5),
    channels=st.sampled_from([0, 1, 2]),
    kind=st.sampled_from(["int16", "float32", "float64"]),
    data=st.data(),
)
def test_any_split_gives_the_same_bits(
    rate: int, seconds: float, channels: int, kind: str, data: st.DataObject
) -> None:
    pcm = as_kind(noise(round(seconds * rate), channels), kind)
    cuts = data.draw(st.lists(st.integers(0, len(pcm)), max_size=12).map(sorted))
    whole = speak(open_session(), pcm, rate)
    assert_same_frames(speak(open_session(), pcm, rate, tuple(cuts)), whole)


def test_audio_sample_by_sample() -> None:
    pcm = noise(9 * 640 + AUDIO.lookahead + 3)
    one_by_one = speak(open_session(), pcm, cuts=tuple(range(1, len(pcm))))
    assert_same_frames(one_by_one, speak(open_session(), pcm))


@pytest.mark.parametrize("rate", [*RATES, 4001, 11_025, 96_000])
@pytest.mark.parametrize("channels", [0, 1, 2, 8])
def test_sound_of_the_frames_is_the_pushed_sound_and_silence_up_to_the_last_frame(rate: int, channels: int) -> None:
    pcm = noise(int(1.03 * rate), channels)
    frames = speak(open_session(), pcm, rate)
    expected = pcm.reshape(len(pcm), -1)
    sound = np.concatenate([frame.audio for frame in frames])
    assert len(frames) == 26
    assert len(sound) == 26 * rate // 25
    np.testing.assert_array_equal(sound[: len(pcm)], expected)
    assert not sound[len(pcm) :].any()


@settings(max_examples=40)
@given(samples=st.integers(1, 40_000), rate=st.sampled_from([*RATES, 4001]))
def test_every_sample_belongs_to_a_frame(samples: int, rate: int) -> None:
    frames = speak(open_session(), noise(samples), rate)
    assert len(frames) == -(-samples * 25 // rate)
    assert [frame.end_of_segment for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert [frame.pts for frame in frames] == [i / 25 for i in range(len(frames))]


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(0, 0), (1, 1), (1600, 3), *((n * 640 + d, n + (d > 0)) for n in (1, 9, 10, 21, 22) for d in (-1, 0, 1))],
)
def test_lengths_around_a_frame_and_a_chunk(samples: int, frames: int) -> None:
    assert len(speak(open_session(), noise(samples))) == frames


@pytest.mark.parametrize("rate", RATES)
def test_frames_come_when_sound_and_lookahead_are_there_and_not_later_than_the_resampler_needs(rate: int) -> None:
    session = open_session()
    assert session.lookahead == AUDIO.lookahead / 16_000
    step, pushed, taken = rate // 1000, 0, 0
    while taken < 33:
        session.push_audio(noise(step), rate)
        pushed += step
        if frames := list(session):
            needed = ((taken + len(frames)) / 25 + session.lookahead) * rate
            assert len(frames) == (12 if taken else 9)
            assert needed <= pushed + 1 <= needed + 0.03 * rate
            taken += len(frames)


@pytest.mark.parametrize("rate", RATES)
def test_the_model_gets_the_resampled_signal_and_silence_around_it(rate: int) -> None:
    pcm = noise(int(0.9 * rate))
    opened = OpenSession()
    speak(opened.session, pcm, rate, cuts=(100, 5000))
    resampler = StreamResampler(rate)
    signal = np.concatenate([resampler.push(pcm), resampler.flush()])
    padded = np.concatenate([np.zeros(16_000, np.float32), signal, np.zeros(16_000, np.float32)])
    assert len(opened.stream.windows) == 3
    for chunk, window in enumerate(opened.stream.windows):
        start = 16_000 + (12 * chunk - 3) * 640 - AUDIO.lookback
        np.testing.assert_array_equal(window, padded[start : start + AUDIO.lookback + 12 * 640 + AUDIO.lookahead])


def test_order_of_the_calls_of_a_stream() -> None:
    opened = OpenSession()
    speak(opened.session, noise(33 * 640))
    passes = [("begin", 0), ("denoise", 0), ("denoise", 1), ("decode", 0), ("context", 0)]
    order = [call for call in opened.stream.calls if call[0] not in ("audio", "video")]
    expected = [("begin", k) if name == "begin" else (name, n) for k in range(3) for name, n in passes]
    assert order == expected[:-1]  # the last chunk's context pass is not needed


def test_inputs_of_a_pass() -> None:
    opened = OpenSession()
    speak(opened.session, noise(33 * 640))
    given, twin = opened.stream.given, NumpyStream()
    for chunk in range(3):
        features = twin.encode_audio(opened.stream.windows[chunk])
        if chunk == 0:
            features[:3] = features[3]  # the stream's first frame fills a whole latent frame
        (start, condition, audio), (_, again, same) = given[2 * chunk : 2 * chunk + 2]
        np.testing.assert_array_equal(audio, features)
        np.testing.assert_array_equal(same, features)
        np.testing.assert_array_equal(again, condition)
        pictures = [np.full((SIDE, SIDE, 3), max(0, 12 * chunk - 3 + i), np.uint8) for i in range(12)]
        sequence, masked = twin.encode_video(to_planes(stack_crops(GEOMETRY, pictures)))
        np.testing.assert_array_equal(condition[3:], np.concatenate([masked, sequence]))
        np.testing.assert_array_equal(condition[:2], np.repeat(given[0][1][5:, :1], 3, axis=1))
        assert start.shape == (2, 3, 2, 2)
    starts = [latent.tobytes() for latent, _, _ in given[::2]]
    assert len({*starts}) == 3  # noise is fresh in every chunk


def test_equal_seeds_give_equal_frames_and_others_do_not() -> None:
    pcm = noise(20 * 640)
    first, again, other = (speak(open_session(seed=seed), pcm) for seed in (7, 7, 8))
    assert_same_frames(again, first)
    assert any((a.image != b.image).any() for a, b in zip(first, other, strict=True))


def test_a_frame_depends_on_all_past_sound_and_none_after_the_lookahead() -> None:
    pcm = noise(45 * 640)
    whole = speak(open_session(), pcm)
    early, late = pcm.copy(), pcm.copy()
    early[100] += np.float32(0.25)
    late[33 * 640 + AUDIO.lookahead] += np.float32(0.25)
    assert (speak(open_session(), early)[44].image != whole[44].image).any()
    changed = speak(open_session(), late)
    for f in range(33):
        np.testing.assert_array_equal(changed[f].image, whole[f].image)
    assert any((changed[f].image != whole[f].image).any() for f in range(33, 45))


def test_two_sessions_in_turn_do_not_touch_each_other() -> None:
    a, b = noise(40 * 640, seed=1), noise(40 * 640, seed=2)
    alone_a, alone_b = speak(open_session(seed=1), a), speak(open_session(seed=2), b)
    session_a, session_b = open_session(seed=1), open_session(seed=2)
    frames_a, frames_b = [], []
    for start in range(0, len(a), 3000):
        session_a.push_audio(a[start : start + 3000], 16_000)
        session_b.push_audio(b[start : start + 3000], 16_000)
        frames_a += list(session_a)
        frames_b += list(session_b)
    session_a.flush()
    session_b.flush()
    assert_same_frames(frames_a + list(session_a), alone_a)
    assert_same_frames(frames_b + list(session_b), alone_b)


class TestSegments:
    def test_a_second_segment_continues_index_time_and_picture(self) -> None:
        opened = OpenSession()
        frames = speak(opened.session, noise(15 * 640 + 17)) + speak(opened.session, noise(30 * 640, seed=1))
        assert [frame.index for frame in frames] == list(range(46))
        assert [frame.pts for frame in frames] == [i / 25 for i in range(46)]
        assert [n for name, n in opened.stream.calls if name == "begin"] == [0, 1, 2, 3, 4]

    def test_each_segment_is_padded_with_silence_and_independent_of_the_sound_before(self) -> None:
        opened = OpenSession()
        first, second = noise(15 * 640 + 17), noise(12 * 640, seed=1)
        speak(opened.session, first)
        speak(opened.session, second)
        silence = np.zeros(16_000, np.float32)
        start = 16_000 - AUDIO.lookback
        length = AUDIO.lookback + 12 * 640 + AUDIO.lookahead
        expected = np.concatenate([silence, second, silence])[start : start + length]
        np.testing.assert_array_equal(opened.stream.windows[2], expected)

    def test_a_segment_may_be_pushed_before_the_first_is_taken(self) -> None:
        a, b = noise(15 * 640), noise(30 * 640, seed=1)
        in_turn = open_session()
        expected = speak(in_turn, a) + speak(in_turn, b)
        session = open_session()
        session.push_audio(a, 16_000)
        session.flush()
        session.push_audio(b, 16_000)
        session.flush()
        assert_same_frames(list(session), expected)

    def test_the_rate_may_change_after_flush_only(self) -> None:
        session = open_session()
        session.push_audio(noise(7000), 16_000)
        with pytest.raises(AudioFormatError, match="48000"):
            session.push_audio(noise(7000), 48_000)
        frames = list(session)
        session.flush()
        session.push_audio(noise(48_000), 48_000)
        session.flush()
        frames += list(session)
        assert len(frames) == 11 + 25
        assert [len(frame.audio) for frame in frames] == [640] * 11 + [1920] * 25
        assert [frame.segment for frame in frames] == [0] * 11 + [1] * 25

    def test_the_number_of_channels_may_change_after_flush_only(self) -> None:
        session = open_session()
        session.push_audio(noise(7000), 16_000)
        with pytest.raises(AudioFormatError, match="channels"):
            session.push_audio(noise(7000, 2), 16_000)
        session.flush()
        session.push_audio(noise(7000, 2), 16_000)
        session.flush()
        assert [frame.audio.shape[1] for frame in session] == [1] * 11 + [2] * 11

    def test_flush_without_audio_and_twice_is_harmless(self) -> None:
        session = open_session()
        session.flush()
        assert list(session) == []
        assert len(speak(session, noise(6400))) == 10
        session.flush()
        session.flush()
        assert list(session) == []
        assert [frame.index for frame in speak(session, noise(640))] == [10]

    def test_an_empty_push_changes_nothing(self) -> None:
        session = open_session()
        assert session.push_audio(np.zeros((0, 2), np.int16), 8000) == 0
        frames = speak(session, noise(6400, 1))
        session.push_audio([], 48_000)
        assert list(session) == []
        assert_same_frames(frames, speak(open_session(), noise(6400, 1)))

    def test_a_segment_shorter_than_a_frame_has_one(self) -> None:
        session, short = open_session(), noise(100)
        (frame,) = speak(session, short)
        np.testing.assert_array_equal(frame.audio[:, 0], np.pad(short, (0, 540)))
        assert (frame.index, frame.segment, frame.end_of_segment) == (0, 0, True)
        assert [frame.index for frame in speak(session, noise(1280))] == [1, 2]

    @pytest.mark.parametrize("samples", [640, 5 * 640, 9 * 640, 13 * 640 + 5, 21 * 640])
    def test_the_picture_continues_after_flush(self, samples: int) -> None:
        """The next segment continues at the frame after the segment's last one."""
        opened = OpenSession()
        frames = speak(opened.session, noise(samples))
        shown = len(frames)
        opened.reference.asked.clear()
        speak(opened.session, noise(30 * 640, seed=1))
        assert opened.reference.asked[0][0] == shown

    def test_frames_before_the_first_face_are_unchanged_and_not_given_to_the_model(self) -> None:
        """The stream's first latent, its identity, is that of the first frame with a face."""
        for faceless in (1, 8, 9, 20):
            opened = OpenSession(reference=NumberedReference(faceless))
            frames = speak(opened.session, noise(45 * 640))
            assert [frame.bypassed for frame in frames] == [i < faceless for i in range(45)]
            assert all((frame.image == i).all() for i, frame in enumerate(frames[:faceless]))
            assert [len(f.audio) for f in frames] == [640] * 45
            twin = NumpyStream()
            first = [np.full((SIDE, SIDE, 3), faceless + max(0, i - 3), np.uint8) for i in range(12)]
            plain, _ = twin.encode_video(to_planes(stack_crops(GEOMETRY, first)))
            condition = opened.stream.given[0][1]
            np.testing.assert_array_equal(condition[:2], np.repeat(plain[:, :1], 3, axis=1))


class TestInterrupt:
    def test_the_next_frames_are_those_of_the_next_audio(self) -> None:
        session = open_session()
        session.push_audio(noise(50 * 640), 16_000)
        iterator = iter(session)
        taken = [next(iterator) for _ in range(12)]
        assert session.interrupt() == 12 / 25
        assert list(iterator) == []
        follow = noise(14 * 640, seed=5)
        frames = speak(session, follow)
        assert [frame.index for frame in taken + frames] == list(range(26))
        np.testing.assert_array_equal(np.concatenate([frame.audio for frame in frames])[:, 0], follow)

    def test_the_picture_continues_after_the_last_frame_that_was_taken(self) -> None:
        opened = OpenSession()
        opened.session.push_audio(noise(50 * 640), 16_000)
        iterator = iter(opened.session)
        for _ in range(10):  # one frame of the second chunk
            next(iterator)
        opened.session.interrupt()
        opened.reference.asked.clear()
        (frame,) = speak(opened.session, noise(640))
        assert [*opened.reference.asked] == [(10, 12)]
        assert (frame.index, frame.segment, frame.end_of_segment) == (10, 1, True)

    def test_interrupt_while_idle_has_no_effect(self) -> None:
        session = open_session()
        assert session.interrupt() == 0
        speak(session, noise(640 * 3))
        assert session.interrupt() == 3 / 25
        assert [frame.index for frame in speak(session, noise(640))] == [3]

    @pytest.mark.parametrize("unshown", [-1, 1.5, "2", None])
    def test_unshown_is_a_number_of_frames(self, unshown: Any) -> None:
        session = open_session()
        speak(session, noise(640 * 3))
        with pytest.raises(ConfigError, match="unshown="):
            session.interrupt(unshown)
        assert [frame.index for frame in speak(session, noise(640))] == [3]

    def test_the_rate_may_change_after_an_interrupt(self) -> None:
        session = open_session()
        session.push_audio(noise(7000), 16_000)
        session.interrupt()
        assert len(speak(session, noise(8000), 8000)) == 25

    @settings(max_examples=25)
    @given(data=st.data())
    def test_index_and_time_have_no_gaps(self, data: st.DataObject) -> None:
        session, taken = open_session(max_pending=2), []
        for _ in range(data.draw(st.integers(1, 12))):
            action = data.draw(st.sampled_from(["push", "take", "some", "flush", "interrupt"]))
            if action == "push":
                try:
                    session.push_audio(noise(data.draw(st.integers(0, 12_000))), 16_000)
                except BackpressureError:
                    taken += list(session)
            elif action == "take":
                taken += list(session)
            elif action == "some":
                taken += islice(session, data.draw(st.integers(1, 15)))
            elif action == "flush":
                session.flush()
            else:
                assert session.interrupt() == len(taken) / 25
        session.flush()
        taken += list(session)
        assert [frame.index for frame in taken] == list(range(len(taken)))
        assert [frame.pts for frame in taken] == [i / 25 for i in range(len(taken))]
        assert all(len(frame.audio) == 640 for frame in taken)


class TestRefusedInput:
    BAD = (
        np.full(640, np.nan, np.float32),
        np.array([0.1, np.inf]),
        np.array([1000.0, -2000.0]),
        np.zeros(640, np.int32),
        np.zeros((2, 640), np.float32),
        np.zeros((4, 4, 4), np.float32),
        np.float32(0.5),
        ["a", "b"],
        [[1.0, 2.0], [3.0]],
        None,
        "abcd",
    )

    @pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
    def test_a_refused_push_changes_nothing(self, bad: Any) -> None:
        pcm = noise(30 * 640)
        session = open_session()
        with pytest.raises(AudioFormatError):
            session.push_audio(bad, 16_000)
        session.push_audio(pcm[:5000], 16_000)
        with pytest.raises(AudioFormatError):
            session.push_audio(bad, 16_000)
        session.push_audio(pcm[5000:], 16_000)
        session.flush()
        assert_same_frames(list(session), speak(open_session(), pcm))

    @pytest.mark.parametrize("rate", [0, -16_000, 3999, 400_000, 16_000.0, "16000", None, float("nan")])
    def test_an_invalid_rate(self, rate: Any) -> None:
        session = open_session()
        with pytest.raises(AudioFormatError, match="rate"):
            session.push_audio(noise(640), rate)
        assert len(speak(session, noise(640), 8000)) == 2

    def test_backpressure_changes_nothing(self) -> None:
        pcm = noise(45 * 640)
        session = open_session(max_pending=1)
        session.push_audio(pcm[: 24 * 640], 16_000)
        with pytest.raises(BackpressureError, match=r"1\.2 s"):
            session.push_audio(pcm[24 * 640 : 30 * 640], 16_000)
        frames = list(session)
        session.push_audio(pcm[24 * 640 :], 16_000)
        session.flush()
        assert_same_frames(frames + list(session), speak(open_session(), pcm))

    def test_backpressure_of_the_first_push_leaves_the_rate_open(self) -> None:
        session = open_session(max_pending=1)
        with pytest.raises(BackpressureError):
            session.push_audio(noise(16_001), 16_000)
        assert len(speak(session, noise(8000), 8000)) == 25

    def test_pieces_of_any_size_fit_the_smallest_queue(self) -> None:
        session, frames, pcm = open_session(max_pending=0.96), [], noise(60 * 640)
        for start in range(0, len(pcm), 320):
            session.push_audio(pcm[start : start + 320], 16_000)
            frames += list(session)
        session.flush()
        assert_same_frames(frames + list(session), speak(open_session(), pcm))

    @pytest.mark.parametrize("options", [{"max_pending": 0.5}, {"max_pending": -1}, {"max_pending": float("nan")}])
    def test_a_queue_too_short_for_a_chunk(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="max_pending"):
            open_session(**options)

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_a_seed_out_of_range(self, seed: int) -> None:
        with pytest.raises(ConfigError, match="seed"):
            open_session(seed=seed)

    def test_the_callers_arrays_may_be_reused(self) -> None:
        pcm = noise(30 * 640)
        session, buffer = open_session(), np.empty(640, np.float32)
        for start in range(0, len(pcm), 640):
            buffer[:] = pcm[start : start + 640]
            session.push_audio(buffer, 16_000)
            buffer[:] = 0
        session.flush()
        assert_same_frames(list(session), speak(open_session(), pcm))


class TestClosing:
    def test_close_twice_and_use_after_close(self) -> None:
        opened = OpenSession()
        session = opened.session
        session.push_audio(noise(20 * 640), 16_000)
        iterator = iter(session)
        next(iterator)
        session.close()
        session.close()
        assert opened.reference.closed
        assert list(iterator) == []
        for use in (
            lambda: session.push_audio(noise(640), 16_000),
            session.flush,
            session.interrupt,
            lambda: list(session),
        ):
            with pytest.raises(SessionClosedError, match="is closed"):
                use()
        assert session.wait() is False

    def test_leaving_the_with_block_closes(self) -> None:
        opened = OpenSession()
        with opened.session as session:
            session.push_audio(noise(640), 16_000)
        assert opened.reference.closed
        with pytest.raises(SessionClosedError):
            session.flush()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_error_in_the_middle_ends_the_session(self, error: type[BaseException]) -> None:
        class Failing(NumpyStream):
            def denoise(self, *args: Any) -> Any:
                if ("begin", 1) in self.calls:
                    raise error("in the second chunk")
                return super().denoise(*args)

        opened = OpenSession(stream=Failing())
        session = opened.session
        session.push_audio(noise(50 * 640), 16_000)
        frames: list[Frame] = []
        other = iter(session)
        next(other)
        with pytest.raises(error):
            frames += session
        assert [frame.index for frame in frames] == list(range(1, 9))
        assert list(other) == []
        for use in (lambda: session.push_audio(noise(640), 16_000), session.flush, lambda: list(session)):
            with pytest.raises(SessionClosedError, match=error.__name__):
                use()
        session.close()
        assert opened.reference.closed


def held_bytes(root: Any) -> int:
    """Size of everything reachable from `root`, but for modules, classes and functions."""
    while root._pipeline._compositing:  # frames beyond the end of a segment, which nobody takes
        time.sleep(0.001)
    seen: dict[int, Any] = {}
    waiting: list[Any] = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | type(sys) | type(held_bytes)):
            continue
        seen[id(item)] = item
        waiting += gc.get_referents(item)
        if isinstance(item, np.ndarray) and item.base is not None:
            waiting.append(item.base)
    return sum(sys.getsizeof(item) for item in seen.values())


class Forgetful(NumpyStream):
    """Does not record its calls."""

    def encode_audio(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        features = super().encode_audio(samples)
        for record in (self.calls, self.windows, self.given):
            record.clear()
        return features


def test_nothing_grows_with_the_length_of_a_stream() -> None:
    opened = OpenSession(stream=Forgetful(), reference=NumberedReference())
    sizes, pcm = [], noise(24 * 1920, 2)
    for _ in range(40):  # 38 seconds
        for start in range(0, len(pcm), 960):
            opened.session.push_audio(pcm[start : start + 960], 48_000)
            for _frame in opened.session:
                pass
        sizes.append(held_bytes(opened.session))
    assert max(sizes[20:]) <= max(sizes[:20])


def test_many_short_segments_do_not_leak_memory() -> None:
    opened = OpenSession(stream=Forgetful())
    sizes = []
    for _ in range(30):
        speak(opened.session, noise(5 * 640))
        sizes.append(held_bytes(opened.session))
    assert max(sizes[15:]) <= max(sizes[:15])
