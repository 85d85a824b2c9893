"""wav2vec 2.0 in a stream, compared with the whole clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lipstream.errors import ConfigError
from lipstream_models.released.wav2vec import LiveWav2Vec, Wav2VecFeatures
from torch import Tensor
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2Model

FRAME, CHUNK, MISSING = 640, 12, 3


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    sizes = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=[16] * 7,
        num_conv_pos_embedding_groups=2,
        attn_implementation="eager",
    )
    return Wav2Vec2Model(sizes).eval().requires_grad_(False)


def speech(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(1)) + 0.02


def chunks(encoder: LiveWav2Vec, waveform: Tensor) -> Tensor:
    """The features of a stream, cut into chunks as a session does: the first has three frames before the sound."""
    count = -(-(waveform.shape[0] // FRAME + MISSING) // CHUNK)
    after = (count * CHUNK - MISSING) * FRAME + encoder.lookahead - waveform.shape[0]
    padded = F.pad(waveform, (encoder.lookback + MISSING * FRAME, after))
    length = encoder.lookback + CHUNK * FRAME + encoder.lookahead
    found = [encoder(padded[k * CHUNK * FRAME :][:length]) for k in range(count)]
    return torch.cat(found)[MISSING:]


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("samples", [50 * FRAME - 123, 45 * FRAME])
def test_a_window_longer_than_the_clip_gives_the_clips_features(model: Any, samples: int) -> None:
    """For every chunk, the first with its missing frames and the last with sound that ends inside it."""
    waveform = speech(samples)
    expected = Wav2VecFeatures(model, samples, 0)(waveform)
    found = chunks(LiveWav2Vec(model, lookback=4, lookahead=4), waveform)[: len(expected)]
    whole = len(expected) // CHUNK * CHUNK - MISSING  # a last chunk beyond the end includes its silent rest
    assert distance(found[:whole], expected[:whole]) < 1e-5


def test_silence_before_the_start_of_a_stream_has_no_effect(model: Any) -> None:
    """The first chunk of a long clip equals that of the clip that ends with its look-ahead."""
    waveform = speech(200 * FRAME)
    encoder = LiveWav2Vec(model, lookback=3.2, lookahead=0.32)
    audio = waveform[: (CHUNK - MISSING) * FRAME + encoder.lookahead]
    expected = Wav2VecFeatures(model, len(audio), 0)(audio)[: CHUNK - MISSING]
    assert distance(chunks(encoder, waveform)[: CHUNK - MISSING], expected) < 1e-5


def test_loudness_and_silence(model: Any) -> None:
    """Loudness does not matter; without any sound the features are finite and those of silence for all frames."""
    encoder = LiveWav2Vec(model, lookback=0.8, lookahead=0.08)
    window = speech(encoder.lookback + CHUNK * FRAME + encoder.lookahead)
    assert distance(encoder(7 * window), encoder(window)) < 1e-4
    silence = encoder(torch.zeros_like(window))
    assert silence.isfinite().all()
    assert silence.shape == (CHUNK, 5 * 32)


@pytest.mark.parametrize("seconds", [{"lookback": -0.1}, {"lookahead": 31.0}, {"lookahead": float("nan")}])
def test_invalid_windows_are_rejected(model: Any, seconds: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="each from 0 to 30 s"):
        LiveWav2Vec(model, **{"lookback": 3.2, "lookahead": 0.08, **seconds})
