"""Audio features of the upstream system: wav2vec 2.0's hidden states, one row per video frame.

The network is that of `transformers`; the steps around it are Lip Forcing's: the waveform is normalised as a whole, and
the convolutions' output is interpolated to the video's frames before the transformer, not after.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lipstream.errors import CheckpointError, ConfigError
from lipstream.media import FPS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ..mel import SAMPLES_PER_FRAME
from .files import open_weights

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

LONGEST = 30.0
"""Seconds; longer windows cost more and change little."""


class Wav2VecFeatures(nn.Module):
    """A whole waveform [N], 16 kHz -> features [frames, (L + 2) * width]: last hidden state, then all L + 1 of them.

    An exported graph accepts one length.

    Args:
        model: wav2vec 2.0, in float32. samples: N. frames: of the video; the waveform is continued with zeros where it
            is shorter, and gives more features where it is longer.
    """

    input_names = ("waveform",)
    output_names = ("features",)

    def __init__(self, model: Wav2Vec2Model, samples: int, frames: int) -> None:
        super().__init__()
        self.model = _without_weight_norm(model)
        self.samples, self.frames = samples, max(math.ceil(samples / SAMPLES_PER_FRAME), frames)

    def example(self) -> tuple[Tensor, ...]:
        return (torch.zeros(self.samples),)

    def forward(self, waveform: Tensor) -> Tensor:
        return hidden_states(self.model, waveform, self.frames)


def hidden_states(model: Wav2Vec2Model, waveform: Tensor, frames: int) -> Tensor:
    """A whole waveform [N], at most 640 `frames` -> [frames, (L + 2) * width]."""
    x = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
    x = F.pad(x, (0, frames * SAMPLES_PER_FRAME - waveform.shape[-1]))
    hidden = model.feature_extractor(x[None])
    return _transformed(model, hidden, frames)


def hidden_states_of_part(model: Wav2Vec2Model, waveform: Tensor, samples_in: Tensor, frames_in: Tensor) -> Tensor:
    """The features of a part of `waveform`, as if that part were the whole; others are finite, without meaning.

    Args:
        waveform: [640 F]. samples_in: [640 F], 1 at each sample of the part, else 0. frames_in: [F], 1 at each of its
            frames, else 0.
    """
    frames = frames_in.shape[0]
    mean = (waveform * samples_in).sum() / samples_in.sum().clamp(min=1)
    x = (waveform - mean) * samples_in
    x = x / torch.sqrt((x * x).sum() / samples_in.sum().clamp(min=1) + 1e-7)
    layers: Any = model.feature_extractor.conv_layers
    hidden = x[None, None]
    for i, layer in enumerate(layers):
        if i == 0 and isinstance(layer.layer_norm, nn.GroupNorm):  # its mean over time covers only the part
            inside = frames_in.repeat_interleave(SAMPLES_PER_FRAME)[None, None]
            inside = -F.max_pool1d(-inside, layer.conv.kernel_size[0], layer.conv.stride[0])
            hidden = layer.activation(_norm_over(layer.layer_norm, layer.conv(hidden), inside))
        else:
            hidden = layer(hidden)
    return _transformed(model, hidden, frames, frames_in)


def _norm_over(norm: nn.GroupNorm, x: Tensor, inside: Tensor) -> Tensor:
    """A group norm of one channel a group, x [1, C, T], with the statistics of where `inside` [1, 1, T] is 1."""
    count = inside.sum()
    x = x - (x * inside).sum(dim=-1, keepdim=True) / count
    scale = torch.rsqrt((x * x * inside).sum(dim=-1, keepdim=True) / count + norm.eps)
    return x * scale * norm.weight[:, None] + norm.bias[:, None]


def _transformed(model: Wav2Vec2Model, hidden: Tensor, frames: int, frames_in: Tensor | None = None) -> Tensor:
    """All states of the transformer on the convolutions' output `hidden` [1, C, T], interpolated to `frames`."""
    hidden = F.interpolate(hidden, size=frames, mode="linear", align_corners=True).transpose(1, 2)
    hidden, _ = model.feature_projection(hidden)
    mask = None
    if frames_in is not None:
        hidden = hidden * frames_in[:, None]  # the convolution of positions pads with zeros
        mask = ((frames_in - 1) * 1e9)[None, None, None]
    # The encoder's loop, since the way it returns all states differs between versions of transformers.
    encoder: Any = model.encoder
    states = [encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))]
    for layer in encoder.layers:
        output = layer(states[-1], attention_mask=mask)
        states.append(output[0] if isinstance(output, tuple) else output)
    return torch.cat([states[-1], *states], dim=-1)[0]


def _without_weight_norm(model: Wav2Vec2Model) -> Wav2Vec2Model:
    """`model` with its weight-normalised weight precomputed, so that an exported graph does not compute it."""
    convolution: Any = model.encoder.pos_conv_embed.conv
    if parametrize.is_parametrized(convolution, "weight"):
        parametrize.remove_parametrizations(convolution, "weight")
    return model


class LiveWav2Vec(nn.Module):
    """wav2vec 2.0 in a stream: features of the frames in the middle of a window of sound.

    Upstream computes features from the whole clip: normalisation, attention and the interpolation to video frames cover
    all of it. Here the features of a chunk come from a window with a fixed past and a short future, as if that were the
    clip. Samples of exactly 0 before the first sound and after the last do not count as part of it. So a stream that
    begins or ends inside the window gives the features of that clip, and so does a window longer than the clip.

    Args:
        lookback, lookahead: seconds of sound before and after the frames of a call.

    Attributes:
        lookback, lookahead: the same in samples, whole video frames.

    Raises:
        ConfigError: one of them is negative, or longer than LONGEST.
    """

    def __init__(self, model: Wav2Vec2Model, *, lookback: float, lookahead: float) -> None:
        super().__init__()
        if not (0 <= lookback <= LONGEST and 0 <= lookahead <= LONGEST):
            raise ConfigError(
                f"lookback {lookback} s and lookahead {lookahead} s", expected=f"each from 0 to {LONGEST:g} s"
            )
        self.model = _without_weight_norm(model)
        self.lookback, self.lookahead = (round(s * FPS) * SAMPLES_PER_FRAME for s in (lookback, lookahead))

    @property
    def features(self) -> int:
        """Width of the features."""
        config: Any = self.model.config
        return int(config.hidden_size * (config.num_hidden_layers + 2))

    def sizes(self) -> dict[str, Any]:
        """The sizes from which `restore` makes the same network."""
        config: Any = self.model.config
        return {
            "config": {name: getattr(config, name) for name in _SIZES},
            "lookback": self.lookback,
            "lookahead": self.lookahead,
        }

    @classmethod
    def restore(cls, sizes: dict[str, Any]) -> LiveWav2Vec:
        """The network of `sizes`, its weights still to be loaded."""
        model: Any = _network(sizes["config"])
        seconds = (sizes[name] / (SAMPLES_PER_FRAME * FPS) for name in ("lookback", "lookahead"))
        return cls(model.eval().requires_grad_(False), **dict(zip(("lookback", "lookahead"), seconds, strict=True)))

    def forward(self, samples: Tensor) -> Tensor:
        """Samples [lookback + 640 n + lookahead] -> features [n, width]."""
        first, after = self.lookback // SAMPLES_PER_FRAME, self.lookahead // SAMPLES_PER_FRAME
        total = samples.shape[-1] // SAMPLES_PER_FRAME
        samples_in, frames_in = _part(samples, first + _MISSING, total - after)
        return hidden_states_of_part(self.model, samples, samples_in, frames_in)[first : total - after]


_MISSING = 3
"""Frames before the clip that the first chunk's window includes: a latent frame has four, the first stands for one."""


def _part(samples: Tensor, first: int, end: int) -> tuple[Tensor, Tensor]:
    """The samples [640 F] and the frames [F] from the first sound to the last: 1 there, else 0.

    Frames `first` to `end` always count, even if silent; without any sound all frames count.
    """
    places = torch.arange(samples.shape[-1], dtype=samples.dtype)
    sound = samples != 0
    start = torch.where(sound, places, first * SAMPLES_PER_FRAME).amin(dim=-1)
    start = torch.where(sound.any(dim=-1), start.clamp(max=first * SAMPLES_PER_FRAME), 0.0)
    stop = torch.where(sound, places, 0.0).amax(dim=-1).clamp(min=end * SAMPLES_PER_FRAME - 1)
    samples_in = ((places >= start) & (places <= stop)).to(samples.dtype)
    return samples_in, samples_in.view(-1, SAMPLES_PER_FRAME).amax(dim=1)


def load_wav2vec(folder: Path) -> Wav2Vec2Model:
    """The network of a Hugging Face folder (`config.json` and its weights), memory-mapped, nothing executed.

    Raises:
        CheckpointError: no such folder, or it holds something else.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no wav2vec 2.0: {error}", expected="a folder with config.json and the weights"
        ) from error
    if config.get("model_type") != "wav2vec2":
        raise CheckpointError(f"{folder} is a {config.get('model_type')}", expected="a wav2vec2")
    names = [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not names:
        raise CheckpointError(f"{folder} holds no weights", expected="model.safetensors or pytorch_model.bin")
    norm = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    weights = {}
    for name, x in open_weights(folder / names[0]).items():
        name = name.removeprefix("wav2vec2.")
        stem, _, last = name.rpartition(".")
        if name.startswith(("feature_extractor.", "feature_projection.", "encoder.")):  # not the task heads
            weights[f"{stem}.{norm.get(last, last)}"] = x.float()
    try:
        return wav2vec({key: config[key] for key in _SIZES if key in config}, weights)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not load: {error}", expected="a complete wav2vec 2.0") from error


_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("feat_extract_norm", "feat_extract_activation", "conv_dim", "conv_stride", "conv_kernel", "conv_bias"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm"),
)


def wav2vec(config: dict[str, Any], weights: dict[str, Tensor]) -> Wav2Vec2Model:
    """The network of `transformers` with the given sizes (its own names) and weights.

    Raises:
        ValueError: weights are missing or unknown; it lists them.
    """
    model = _network(config)
    missing, unknown = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name != "masked_spec_embed"]  # used only in training
    if missing or unknown:
        raise ValueError(f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")
    found: Wav2Vec2Model = model.eval().requires_grad_(False)
    return found


def _network(config: dict[str, Any]) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return Wav2Vec2Model(Wav2Vec2Config(**{**config, "attn_implementation": "eager"}))
