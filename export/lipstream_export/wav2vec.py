"""Audio features of the released system: wav2vec 2.0's hidden states, one column per video frame.

The network is that of `transformers`; what is done around it is Lip Forcing's: the waveform is normalised as a whole,
and the convolutions' output is stretched to the video's frames before the transformer, not after.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lipstream.errors import CheckpointError
from lipstream.media import FPS
from lipstream_training.models.mel import SAMPLES_PER_FRAME
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .released.files import open_weights

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model


class Wav2VecFeatures(nn.Module):
    """A whole waveform [N], 16 kHz -> features [frames, (L + 2) * width]: last hidden state, then all L + 1 of them.

    As a graph it is for one length.

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
        return _features(self.model, waveform, self.frames)


def _features(model: Wav2Vec2Model, waveform: Tensor, frames: int) -> Tensor:
    """[N], at most 640 `frames` -> [frames, (L + 2) * width]."""
    x = (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)
    x = F.pad(x, (0, frames * SAMPLES_PER_FRAME - waveform.shape[-1]))
    hidden = model.feature_extractor(x[None])
    hidden = F.interpolate(hidden, size=frames, mode="linear", align_corners=True).transpose(1, 2)
    hidden, _ = model.feature_projection(hidden)
    # The encoder's own loop, since how it hands out all states differs between versions of transformers.
    encoder: Any = model.encoder
    states = [encoder.layer_norm(hidden + encoder.pos_conv_embed(hidden))]
    for layer in encoder.layers:
        output = layer(states[-1])
        states.append(output[0] if isinstance(output, tuple) else output)
    return torch.cat([states[-1], *states], dim=-1)[0]


def _without_weight_norm(model: Wav2Vec2Model) -> Wav2Vec2Model:
    """`model` with the one weight it computes from two computed for good: an exported graph need not do it again."""
    convolution: Any = model.encoder.pos_conv_embed.conv
    if parametrize.is_parametrized(convolution, "weight"):
        parametrize.remove_parametrizations(convolution, "weight")
    return model


class LiveWav2Vec(nn.Module):
    """wav2vec 2.0 in a stream: features of the frames in the middle of a window of sound.

    The released system hears the whole clip: its normalisation, its attention and the stretching to video frames reach
    from end to end. Here each chunk is heard with a fixed past and a little future, and normalised by its own window.

    Attributes:
        lookback, lookahead: samples before and after the frames asked for, whole video frames.
    """

    def __init__(self, model: Wav2Vec2Model, *, lookback: float = 3.2, lookahead: float = 0.08) -> None:
        super().__init__()
        self.model = _without_weight_norm(model)
        self.lookback, self.lookahead = (round(s * FPS) * SAMPLES_PER_FRAME for s in (lookback, lookahead))

    @property
    def features(self) -> int:
        """Width of the features."""
        config: Any = self.model.config
        return int(config.hidden_size * (config.num_hidden_layers + 2))

    def sizes(self) -> dict[str, Any]:
        """What makes the same network again: see `wav2vec` and `restore`."""
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
        whole = _features(self.model, samples, samples.shape[-1] // SAMPLES_PER_FRAME)
        return whole[first : whole.shape[0] - after]


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
        if name.startswith(("feature_extractor.", "feature_projection.", "encoder.")):  # not the heads for tasks
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
    missing = [name for name in missing if name != "masked_spec_embed"]  # of training alone
    if missing or unknown:
        raise ValueError(f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}")
    found: Wav2Vec2Model = model.eval().requires_grad_(False)
    return found


def _network(config: dict[str, Any]) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    return Wav2Vec2Model(Wav2Vec2Config(**{**config, "attn_implementation": "eager"}))
