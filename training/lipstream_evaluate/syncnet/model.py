"""SyncNet as published (Chung and Zisserman, "Out of time", 2016), and its weights.

Modules have the names of the published code, so that `syncnet_v2.model` loads unchanged.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lipstream.errors import CheckpointError
from lipstream_models.config import config_from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .mfcc import COEFFICIENTS

FRAMES = 5
"""Video frames of one embedding."""
CEPSTRA = 20
"""Cepstra of one embedding: those of 5 video frames."""
PER_FRAME = 4
"""Cepstra per video frame."""
DRAWN = "drawn"
"""Name of the shipped weights: a small net, trained on drawn faces. Not comparable with published numbers."""


@dataclass(frozen=True)
class SyncNetConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
        size: pixels of the square crop; 64 or more.
        lip, audio: channels of the six convolutions of each branch. hidden, embedding: widths of the linear layers.
        crop: None: the crop is the face's box with a margin, as in `syncnet_python`. Else a rectangle (left, top,
            right, bottom) of the 420 x 560 alignment canvas.
    """

    size: int = 224
    lip: tuple[int, ...] = (96, 256, 256, 256, 256, 512)
    audio: tuple[int, ...] = (64, 192, 384, 256, 256, 512)
    hidden: int = 512
    embedding: int = 1024
    crop: tuple[float, float, float, float] | None = None


class SyncNet(nn.Module):
    """Two branches into one embedding space, in which lips and sound of the same moment are close."""

    def __init__(self, config: SyncNetConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or SyncNetConfig()
        a, v = c.audio, c.lip
        self.netcnnaud = nn.Sequential(
            *(nn.Conv2d(1, a[0], 3, padding=1), nn.BatchNorm2d(a[0]), nn.ReLU(), nn.MaxPool2d(1, 1)),
            *(nn.Conv2d(a[0], a[1], 3, padding=1), nn.BatchNorm2d(a[1]), nn.ReLU(), nn.MaxPool2d(3, (1, 2))),
            *(nn.Conv2d(a[1], a[2], 3, padding=1), nn.BatchNorm2d(a[2]), nn.ReLU()),
            *(nn.Conv2d(a[2], a[3], 3, padding=1), nn.BatchNorm2d(a[3]), nn.ReLU()),
            *(nn.Conv2d(a[3], a[4], 3, padding=1), nn.BatchNorm2d(a[4]), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a[4], a[5], (5, 4)), nn.BatchNorm2d(a[5]), nn.ReLU()),
        )
        flat, half, side = (1, 3, 3), (1, 2, 2), (0, 1, 1)
        left = ((c.size - 7) // 2 + 1 - 3) // 2 + 1  # pixels after the first pool,
        left = (((left - 3) // 2 + 1) - 1) // 2 + 1  # the second,
        left = (left - 3) // 2 + 1  # the third: 6 of 224
        self.netcnnlip = nn.Sequential(
            *(nn.Conv3d(3, v[0], (FRAMES, 7, 7), half), nn.BatchNorm3d(v[0]), nn.ReLU(), nn.MaxPool3d(flat, half)),
            *(nn.Conv3d(v[0], v[1], (1, 5, 5), half, side), nn.BatchNorm3d(v[1]), nn.ReLU()),
            nn.MaxPool3d(flat, half, side),
            *(nn.Conv3d(v[1], v[2], flat, padding=side), nn.BatchNorm3d(v[2]), nn.ReLU()),
            *(nn.Conv3d(v[2], v[3], flat, padding=side), nn.BatchNorm3d(v[3]), nn.ReLU()),
            *(nn.Conv3d(v[3], v[4], flat, padding=side), nn.BatchNorm3d(v[4]), nn.ReLU(), nn.MaxPool3d(flat, half)),
            *(nn.Conv3d(v[4], v[5], (1, left, left)), nn.BatchNorm3d(v[5]), nn.ReLU()),
        )
        self.netfcaud = _head(a[5], c.hidden, c.embedding)
        self.netfclip = _head(v[5], c.hidden, c.embedding)

    def lips(self, frames: Tensor) -> Tensor:
        """Embeddings of all windows of five frames.

        Only the first convolution covers more than one frame, so a whole clip is computed at once: the same result as
        window by window, at a fifth of the operations.

        Args:
            frames: float [B, 3, T, size, size], blue, green, red, in 0..255.

        Returns:
            float [B, T - 4, embedding].
        """
        seen = self.netcnnlip(frames).flatten(3).squeeze(3).transpose(1, 2)  # [B, T - 4, C]
        return _each(self.netfclip, seen)

    def sound(self, cepstra: Tensor) -> Tensor:
        """Embeddings of the sound of all windows of five video frames.

        Args:
            cepstra: float [B, 4 n + 16 or up to 3 more, 13], see `mfcc`.

        Returns:
            float [B, n, embedding].
        """
        windows = cepstra.unfold(1, CEPSTRA, PER_FRAME)  # [B, n, 13, 20]
        sound = self.netcnnaud(windows.reshape(-1, 1, COEFFICIENTS, CEPSTRA)).flatten(1)
        return _each(self.netfcaud, sound.unflatten(0, windows.shape[:2]))


def load_syncnet(weights: str | Path) -> SyncNet:
    """SyncNet with weights, in evaluation mode.

    Args:
        weights: "drawn"; or a file: the published `syncnet_v2.model`, or .safetensors that `save_syncnet` wrote.

    Raises:
        CheckpointError: no such file, or it does not hold a SyncNet.
    """
    path = Path(__file__).with_name("drawn.safetensors") if str(weights) == DRAWN else Path(weights)
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}", expected="SyncNet's weights (syncnet_v2.model), or 'drawn'")
    config, tensors = _read(path)
    net = SyncNet(config)
    wanted = {name: tuple(x.shape) for name, x in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    found = {name: tuple(x.shape) for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    if wanted != found:
        wrong = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{path} is not SyncNet: {wrong} is {found.get(wrong, 'missing')}",
            expected=f"{len(wanted)} tensors, {wrong} {wanted.get(wrong, 'not among them')}",
        )
    net.load_state_dict(tensors, strict=False)
    return net.eval().requires_grad_(False)


def save_syncnet(net: SyncNet, path: Path) -> None:
    """Write the weights as float16, which changes scores in the third digit."""
    tensors = {name: x.half().contiguous() for name, x in net.state_dict().items() if x.is_floating_point()}
    save_file(tensors, path, metadata={"syncnet": json.dumps(asdict(net.config))})


def _read(path: Path) -> tuple[SyncNetConfig, dict[str, Tensor]]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                fields: dict[str, Any] = json.loads((file.metadata() or {})["syncnet"])
                config = config_from_json(SyncNetConfig, fields)
                return config, {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(tensors, dict) and all(isinstance(x, Tensor) for x in tensors.values()):
            return SyncNetConfig(), tensors
        reason = f"it holds a {type(tensors).__name__}"
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"it was not written by save_syncnet ({type(error).__name__}: {error})"
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n", 1)[0]
    raise CheckpointError(f"{path} is not SyncNet: {reason}", expected="a dictionary of tensors")


def _head(channels: int, hidden: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, embedding))


def _each(head: nn.Sequential, x: Tensor) -> Tensor:
    """`head` [N, C] -> [N, E], on [B, n, C]."""
    out: Tensor = head(x.flatten(0, 1))
    return out.view(*x.shape[:2], -1)
