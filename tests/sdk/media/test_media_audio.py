from __future__ import annotations

import struct
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lipstream.errors import AudioFormatError, MediaOpenError, MediaTruncatedError, NoAudioError
from lipstream.media import AudioReader, StreamResampler, read_audio, to_float, to_int16
from media_clips import cut, stamped, write_clip, write_sound
from numpy.typing import NDArray


def chirp(count: int, rate: int, channels: int = 1) -> NDArray[np.float32]:
    """A sweep below 3 kHz, a different one in each channel, so that its autocorrelation has a single peak."""
    t = np.arange(count) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * (200 + 150 * c + 700 * t) * t) for c in range(channels)], 1).astype("f4")


def lag(a: NDArray[np.float32], b: NDArray[np.float32]) -> int:
    """Samples by which `b` comes after `a`, by the peak of the cross-correlation."""
    size = len(a) + len(b)
    product = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    peak = int(product.argmax())
    return peak if peak < size // 2 else peak - size


@pytest.mark.parametrize(
    ("name", "codec", "rate", "error"),
    [
        ("a.wav", "pcm_s16le", 44_100, 2**-15),
        ("a.wav", "pcm_s24le", 48_000, 2**-23),
        ("a.wav", "pcm_f32le", 8_000, 0),
        ("a.wav", "pcm_u8", 16_000, 2**-6),
        ("a.flac", "flac", 44_100, 2**-15),
        ("a.m4a", "aac", 44_100, 0.05),
        ("a.mp4", "aac", 48_000, 0.05),
        ("a.mka", "libopus", 48_000, 0.05),
        ("a.opus", "libopus", 48_000, 0.05),
        ("a.mp3", "libmp3lame", 44_100, 0.05),
    ],
)
def test_length_and_position_are_exact(tmp_path: Path, name: str, codec: str, rate: int, error: float) -> None:
    signal = chirp(rate + 321, rate, 2)
    path = write_sound(tmp_path / name, signal, rate, codec, "stereo")
    samples, got_rate = read_audio(path)
    assert got_rate == rate
    assert samples.dtype == np.float32
    assert samples.shape == signal.shape
    assert all(lag(signal[:, c], samples[:, c]) == 0 for c in (0, 1))
    inner = slice(rate // 10, -rate // 10)  # a lossy codec is less accurate at the edges
    assert np.sqrt(np.mean((samples - signal)[inner] ** 2)) <= error


@pytest.mark.parametrize("channels", range(1, 9))
def test_channel_counts(tmp_path: Path, channels: int) -> None:
    signal = chirp(9_000, 48_000, channels)
    layout = (
        f"{channels}C" if channels == 7 else ["mono", "stereo", "3.0", "4.0", "5.0", "5.1", "", "7.1"][channels - 1]
    )
    path = write_sound(tmp_path / "many.wav", signal, 48_000, "pcm_f32le", layout)
    np.testing.assert_array_equal(read_audio(path)[0], signal)


def test_eight_planar_channels(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "cinema.m4a", chirp(48_000, 48_000, 8), 48_000, "aac", "7.1")
    assert read_audio(path)[0].shape == (48_000, 8)


def test_blocks_are_small_and_join_to_the_whole(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", chirp(200_000, 48_000), 48_000, "pcm_s16le")
    reader = AudioReader(path)
    blocks = list(reader)
    assert max(map(len, blocks)) <= 16_384
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path)[0])
    assert reader.info.duration == pytest.approx(200_000 / 48_000)


def test_the_audio_of_a_video(tmp_path: Path) -> None:
    signal = chirp(48_000, 48_000)
    path = write_clip(tmp_path / "clip.mp4", [stamped(k) for k in range(25)], audio=signal)
    samples, _ = read_audio(path)
    assert samples.shape == signal.shape
    assert lag(signal[:, 0], samples[:, 0]) == 0


def test_no_audio(tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    with wave.open(str(empty), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
    with pytest.raises(NoAudioError):
        AudioReader(write_clip(tmp_path / "mute.mp4", [stamped(0)]))
    with pytest.raises(NoAudioError):
        AudioReader(empty)
    with pytest.raises(MediaOpenError):
        AudioReader(tmp_path / "missing.wav")


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.wav", "pcm_f32le"), ("a.flac", "flac")])
def test_a_truncated_file_is_an_error(tmp_path: Path, name: str, codec: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (96_000, 1)).astype(np.float32)
    blocks = iter(AudioReader(cut(write_sound(tmp_path / name, noise, 48_000, codec), 0.6)))
    next(blocks)
    with pytest.raises(MediaTruncatedError, match=r"its header says 2\.00 s"):
        list(blocks)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0])
def test_a_wav_of_unstated_size_is_read_to_its_end(tmp_path: Path, size: int) -> None:
    path = write_sound(tmp_path / "piped.wav", chirp(96_000, 48_000), 48_000, "pcm_s16le")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    assert len(read_audio(path)[0]) == 96_000


def test_every_int16_sample_comes_back_from_float() -> None:
    every = np.arange(-32768, 32768, dtype=np.int32).astype(np.int16)
    np.testing.assert_array_equal(to_int16(to_float(every))[:, 0], every)
    np.testing.assert_array_equal(to_int16(np.array([-2, 1, 2], np.float32)), [-32768, 32767, 32767])


def test_to_float() -> None:
    np.testing.assert_array_equal(to_float(np.array([-32768, 0, 16384], np.int16)), [[-1], [0], [0.5]])
    stereo = np.array([[0.25, -2.0]], np.float64)
    assert to_float(stereo).dtype == np.float32
    np.testing.assert_array_equal(to_float(stereo), stereo)
    assert to_float(np.zeros(0, np.int16)).shape == (0, 1)
    assert to_float(np.zeros((0, 2), np.float32)).shape == (0, 2)


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (np.zeros(4, np.int32), "int32"),
        (np.zeros(4, np.uint8), "uint8"),
        (np.array(["a"]), "type"),
        (np.float32(0.5), "shape"),
        (np.zeros((2, 2, 2), np.float32), "shape"),
        (np.zeros((2, 16_000), np.float32), "shape"),
        (np.zeros((4, 0), np.float32), "shape"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, -np.inf], np.float64), "NaN"),
        (np.array([0, -12_000.0], np.float32), "32768"),
    ],
)
def test_to_float_rejects_invalid_samples(pcm: NDArray[np.generic], says: str) -> None:
    with pytest.raises(AudioFormatError) as caught:
        to_float(pcm)
    assert says in str(caught.value)


@pytest.mark.parametrize("rate", [0, 3_999, 384_001, -16_000, 16_000.0, True, "16000", None])
def test_rates_out_of_range(rate: object) -> None:
    with pytest.raises(AudioFormatError, match="sample rate"):
        StreamResampler(rate)  # type: ignore[arg-type]


@given(
    st.sampled_from([4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 384_000]),
    st.integers(0, 9_000),
    st.lists(st.integers(0, 9_000), max_size=8),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_split_gives_the_same_bits(rate: int, count: int, cuts: list[int], stereo: bool) -> None:
    signal = np.random.default_rng(count).uniform(-1, 1, (count, 1 + stereo)).astype(np.float32)
    resampler = StreamResampler(rate)
    whole = np.concatenate([resampler.push(signal), resampler.flush()])
    edges = [0, *sorted(min(c, count) for c in cuts), count]
    pieces = [resampler.push(signal[a:b]) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate([*pieces, resampler.flush()]), whole)
    assert whole.dtype == np.float32
    assert whole.shape == (int(count * 16_000 / rate + 0.5),)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 15_999, 16_000, 22_050, 44_100, 48_000, 96_000, 384_000])
def test_a_tone_comes_out_as_the_same_tone_without_delay(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    resampler = StreamResampler(rate)
    got = np.concatenate([resampler.push(tone), resampler.flush()])
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(got - expected)[500:-500].max() < 1e-4


def test_no_drift_over_an_hour() -> None:
    rate, minute = 11_025, np.zeros(11_025 * 60, np.float32)
    click = minute.copy()
    click[-rate] = 1.0  # one second before the end
    resampler = StreamResampler(rate)
    received = sum(len(resampler.push(minute)) for _ in range(59))
    tail = np.concatenate([resampler.push(click), resampler.flush()])
    assert received + len(tail) == 3600 * 16_000
    assert received + int(tail.argmax()) == 3599 * 16_000


def test_mixing_and_int16() -> None:
    pair = np.stack([np.full(4_000, 16_384), np.full(4_000, -8_192)], 1).astype(np.int16)
    resampler = StreamResampler(16_000)
    np.testing.assert_array_equal(
        np.concatenate([resampler.push(pair), resampler.flush()]), np.full(4_000, 0.125, np.float32)
    )
    kept = StreamResampler(16_000, mono=False)
    np.testing.assert_array_equal(np.concatenate([kept.push(pair), kept.flush()]), pair / 32_768)


def test_channels_may_not_change_until_flush() -> None:
    resampler = StreamResampler(16_000)
    resampler.push(np.zeros((10, 2), np.float32))
    with pytest.raises(AudioFormatError, match="1 audio channels"):
        resampler.push(np.zeros(10, np.float32))
    resampler.flush()
    resampler.push(np.zeros(10, np.float32))


def test_output_follows_input_closely() -> None:
    resampler = StreamResampler(48_000)
    received = 0
    for k in range(1, 101):
        received += len(resampler.push(np.zeros(480, np.float32)))
        assert received >= k * 160 - 800  # 20 ms of grouping and the filter's own 30 ms at most


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_that_cancel_each_other_are_not_mixed(rate: int) -> None:
    """The middle second is in opposite phase, the left channel louder; elsewhere the mean is taken."""
    tone = np.sin(2 * np.pi * 220 * np.arange(3 * rate) / rate).astype(np.float32) / 2
    right = tone.copy()
    right[rate : 2 * rate] *= -0.9
    got = StreamResampler(rate)
    out = np.concatenate([got.push(np.stack([tone, right], 1)), got.flush()])
    alone = StreamResampler(rate)
    want = np.concatenate([alone.push(tone), alone.flush()])
    np.testing.assert_allclose(out, want, atol=2e-3)
