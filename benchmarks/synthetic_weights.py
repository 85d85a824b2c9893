"""Export graphs of any size without the memory for their weights: every weight is one number, repeated.

Such a model exports the same graph as a real one, except for the values, so its operations and shapes can be counted on
any machine, even at 14B. The graph cannot be written to a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir
import torch
from lipstream_export.bundle import graph_modules
from lipstream_export.denoiser import RingPass, dynamic_shapes
from lipstream_export.lower import trace
from lipstream_export.precision import quantise, to_bfloat16
from lipstream_export.precision.fp8 import linear_layers
from lipstream_export.settings import LOOKAHEAD, LOOKBACK
from lipstream_models import STUDENTS, TAEHV, CausalDiT, SpeechEncoder, StudentConfig, TAEHVConfig, WanVAE, WanVAEConfig
from lipstream_models.config import TINY_TAEHV
from lipstream_models.parts import StudentParts
from lipstream_models.released.wav2vec import LiveWav2Vec
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

MASKED_ROWS = slice(190, 486)
"""Rows in which the released mask, LatentSync's at 512 x 512, hides pixels. Rows above are encoded once."""


@dataclass(frozen=True)
class Graph:
    """One graph of a student.

    Attributes:
        name: as in a bundle. codec: "wan" or "taehv" for the video graphs, else "".
    """

    name: str
    codec: str
    model: onnx_ir.Model


def graphs(size: str, precision: str, *, layers: int = 0, passes: bool = False) -> Iterator[Graph]:
    """Each graph that a student of `size` may run: both codecs for each half at the released sizes.

    Args:
        precision: "fp32", "bf16" or "fp8". layers: of the DiT, in place of the size's own.
        passes: the DiT's graphs alone.
    """
    config = STUDENTS[size]
    if layers:
        config = StudentConfig(**{**vars(config), "num_layers": layers})
    tiny = size == "tiny"
    with torch.device("meta"):
        student = CausalDiT(config).eval().requires_grad_(False)
        taehv = TAEHV(TINY_TAEHV if tiny else TAEHVConfig())
        wan = None if tiny else WanVAE(WanVAEConfig())
    text = torch.zeros(config.text_len, config.text_dim)
    speech: nn.Module = SpeechEncoder()
    if not tiny:
        speech = LiveWav2Vec(Wav2Vec2Model(Wav2Vec2Config()), lookback=LOOKBACK, lookahead=LOOKAHEAD)  # wav2vec2-base
    masks = {"pixel": torch.ones(config.crop_size)}
    if not tiny:
        masks["pixel"][MASKED_ROWS] = 0
    parts = StudentParts(config, student, text, taehv, speech, masks, shared={}, wan=wan)
    if precision != "fp32":
        parts = to_bfloat16(parts)
        assert parts.student
    if precision == "fp8":
        parts.student = quantise(parts.student, dict.fromkeys(linear_layers(parts.student), 8.0))
    for module in parts.modules().values():
        hollow(module)
    for codec in ("taehv",) if tiny or passes else ("taehv", "wan"):
        parts.encoder = parts.decoder = codec
        for name, module in graph_modules(parts).items():
            video = name.startswith("video")
            if (not video and codec == "wan") or (passes and name != "denoiser"):
                continue  # counted with the other codec, or not requested
            dynamic = dynamic_shapes(module, config) if isinstance(module, RingPass) else None
            with torch.no_grad():
                yield Graph(name, codec if video else "", trace(module, dynamic=dynamic))


def hollow(module: nn.Module) -> None:
    """Replace every weight of `module` by one repeated number, in place; it may be on the device "meta"."""
    for part in module.modules():
        for name, x in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(_repeated(x), requires_grad=False))
        for name, x in part.named_buffers(recurse=False):
            if x.device.type == "meta":
                setattr(part, name, _repeated(x))


def _repeated(x: Tensor) -> Tensor:
    return torch.zeros((), dtype=x.dtype).expand(x.shape)
