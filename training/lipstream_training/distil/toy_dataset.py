"""Data of the miniature study: clips of drawn people, 33 frames of 32 x 32 pixels, nine latent frames of 4 x 4.

They come from the tiny student's generator, with its audio encoder and its kind of codec; each stage trains on them in
minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lipstream.atomic import new_file
from lipstream_evaluate.processes import in_processes
from lipstream_evaluate.syncnet import DRAWN, load_syncnet, mfcc
from lipstream_models import STUDENTS, SpeechEncoder
from lipstream_models.condition import assemble_condition, fill_first_latent_frame
from lipstream_models.mel import LOOKAHEAD, LOOKBACK, PAST_FRAMES, SAMPLES_PER_FRAME
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..data.clips import draw_clip
from ..data.mask import latent_mask, mouth_mask
from ..optim import Descent
from .reward import sync_scores
from .rollout import Batch

CONFIG = STUDENTS["micro"]
SIZE = CONFIG.crop_size[0]
FRAMES = 33
_BLOCK = 4 * 3 * CONFIG.spatial**2  # values per latent
_MICRO = 9  # seeds [9, ...] are used here only


@dataclass
class Micro:
    """Clips as tensors; the last `held_out` are never trained on.

    Attributes:
        target, masked, first: latents [N, C, 9, 4, 4], [N, C, 9, 4, 4], [N, C, 1, 4, 4]. audio: [N, 36, 64].
        mouth: opening of the mouth by the rule, [N, 33]. cepstra: [N, 131, 13].
        back: latents to pixels, [C, numbers of a block]. forth: pixels to latents.
    """

    target: Tensor
    masked: Tensor
    first: Tensor
    audio: Tensor
    mouth: Tensor
    cepstra: Tensor
    back: Tensor
    forth: Tensor
    held_out: int

    def __len__(self) -> int:
        return len(self.target) - self.held_out

    @property
    def unseen(self) -> tuple[int, ...]:
        return tuple(range(len(self), len(self.target)))

    def batch(self, clips: tuple[int, ...]) -> Batch:
        rows = torch.tensor(clips)
        masked, mask = self.masked[rows], torch.from_numpy(latent_mask(SIZE, CONFIG.spatial))
        condition = assemble_condition(self.first[rows], mask, masked, masked)
        return Batch(self.target[rows], condition, self.audio[rows], clips)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, 9, 4, 4] -> video [B, 33, 3, 32, 32] in [0, 1]."""
        blocks = torch.einsum("bcfhw,cp->bfhwp", latents.float(), self.back)
        s = CONFIG.spatial
        video = torch.unflatten(blocks, -1, (4, 3, s, s)).permute(0, 1, 4, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5)
        whole: Tensor = video.flatten(1, 2)[:, 3:] + 0.5
        return whole.clamp(0, 1)

    def encode(self, video: Tensor) -> Tensor:
        """[B, 33, 3, 32, 32] in [0, 1] -> latents; the first frame is repeated four times."""
        return torch.einsum("bfhwp,pc->bcfhw", _blocks(video), self.forth)

    def judge(self, latents: Tensor, clips: tuple[int, ...]) -> Tensor:
        """Sync-C of generated clips [B], by the SyncNet for drawn faces."""
        return torch.tensor([confidence for confidence, _ in self.sync(latents, clips)])

    @torch.inference_mode()
    def sync(self, latents: Tensor, clips: tuple[int, ...]) -> list[tuple[float, float]]:
        """Sync-C and Sync-D of each clip."""
        found = sync_scores(_syncnet(), self.decode(latents), self.cepstra[list(clips)])
        return [(one.confidence, one.distance) for one in found]


_nets: list[Any] = []


def _syncnet() -> Any:
    if not _nets:
        _nets.append(load_syncnet(DRAWN))
    return _nets[0]


def load_micro(folder: Path, clips: int = 700, held_out: int = 48, *, quiet: bool = False) -> Micro:
    """Draw the clips, or find them in `folder`."""
    path = folder / f"micro-{clips}-{held_out}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: x.contiguous() for name, x in _make(clips + held_out, quiet).items()}
        with new_file(path) as partial:
            save_file(tensors, partial)
    return Micro(**load_file(path), held_out=held_out)


def _make(clips: int, quiet: bool) -> dict[str, Tensor]:
    drawn = list(tqdm(in_processes(_draw, range(clips)), "drawing", clips, unit="clip", disable=quiet))
    arrays = {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}
    pixel = torch.from_numpy(mouth_mask(SIZE))
    video, reference, identity = (_video(arrays[name]) for name in ("target", "reference", "identity"))
    forth, back = _components(video)
    nothing = torch.empty(0)
    micro = Micro(nothing, nothing, nothing, nothing, nothing, nothing, back, forth, 0)
    return {
        "target": micro.encode(video),
        "masked": micro.encode((reference - 0.5) * pixel + 0.5),
        "first": torch.einsum("bfhwp,pc->bcfhw", _blocks(identity[:, None]), forth),
        "audio": _audio_features(arrays["speech"], arrays["mouth"]),
        "mouth": arrays["mouth"][..., 0].contiguous(),
        "cepstra": arrays["cepstra"],
        "back": back,
        "forth": forth,
    }


def _draw(index: int) -> dict[str, NDArray[Any]]:
    clip = draw_clip(np.random.default_rng([_MICRO, index]), FRAMES, SIZE, CONFIG.crop_box)
    first = PAST_FRAMES * SAMPLES_PER_FRAME
    end = first + FRAMES * SAMPLES_PER_FRAME
    return {
        "target": clip.target,
        "reference": clip.reference,
        "identity": clip.identity,
        "speech": clip.audio[first - LOOKBACK : end + LOOKAHEAD],
        "mouth": clip.mouth.stacked(),
        "cepstra": mfcc(clip.audio[first:end]),
    }


def _video(frames: Tensor) -> Tensor:
    return frames.movedim(-1, -3).float() / 255


def _blocks(video: Tensor) -> Tensor:
    """[B, 1 + 4 n, 3, H, W] -> [B, 1 + n, h, w, numbers of a block] around grey; the first frame four times."""
    s = CONFIG.spatial
    whole = fill_first_latent_frame(video) - 0.5
    cut = whole.view(len(whole), -1, 4, 3, SIZE // s, s, SIZE // s, s)  # [B, F, 4, 3, h, s, w, s]
    return cut.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)


def _components(video: Tensor) -> tuple[Tensor, Tensor]:
    """The first principal components of blocks, forth [numbers, C] and back [C, numbers], as the tiny codec's."""
    blocks = _blocks(video).flatten(0, 3)
    some = blocks[torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))[:60_000]].double()
    variance, vectors = torch.linalg.eigh(some.T @ some / len(some))
    count = CONFIG.latent_channels
    variance, vectors = variance.flip(0)[:count], vectors.flip(1)[:, :count]
    scale = 2.2 * variance ** (-0.25)
    scale = scale / (scale * variance.sqrt()).mean()  # unit deviation on average
    return (vectors * scale).float(), (vectors / scale).float().T.contiguous()


def _audio_features(speech: Tensor, mouth: Tensor) -> Tensor:
    """Features [N, 36, 64] of an audio encoder trained on these voices; those of the first frame four times."""
    torch.manual_seed(0)
    encoder, read = SpeechEncoder(), nn.Linear(SpeechEncoder.features, mouth.shape[-1])
    with torch.no_grad():
        spectra = torch.cat([encoder.mel(part) for part in torch.split(speech, 64)])
    descent = Descent([encoder, read], 400, 2e-3)
    for _ in range(400):
        chosen = torch.randint(len(spectra), (16,))
        x = spectra[chosen]
        descent.step(F.mse_loss(read(encoder.encode(x + 0.05 * torch.randn_like(x))), mouth[chosen]))
    with torch.no_grad():
        features = torch.cat([encoder.encode(part) for part in torch.split(spectra, 64)])
    return fill_first_latent_frame(features).contiguous()


def texts() -> tuple[Tensor, Tensor]:
    """Embeddings of the prompt and of the negative prompt: random numbers here."""
    generator = torch.Generator().manual_seed(1)
    text, negative = torch.randn(2, CONFIG.text_len, CONFIG.text_dim, generator=generator)
    return text, negative


def fidelity(micro: Micro, latents: Tensor, clips: tuple[int, ...]) -> dict[str, float]:
    """PSNR in dB against the drawn clips, inside and outside the mouth."""
    pixel = torch.from_numpy(mouth_mask(SIZE)) > 0.5
    made, drawn = micro.decode(latents), micro.decode(micro.target[list(clips)])
    error = (made - drawn).square().mean(2)

    def psnr(area: Tensor) -> float:
        each = error[..., area].flatten(1).mean(1)
        return float((-10 * torch.log10(each.clamp_min(1e-9))).mean())  # 90 dB stand for equal pictures

    return {"psnr_mouth": psnr(~pixel), "psnr_outside": psnr(pixel)}


def opening(micro: Micro) -> Callable[[Tensor], Tensor]:
    """A function from latents to the opening [B, 33]: ridge regression on the training clips."""
    train = slice(0, len(micro))
    x = micro.target[train].permute(0, 2, 1, 3, 4).flatten(2)  # [N, 9, C h w]
    four = fill_first_latent_frame(micro.mouth[train]).view(-1, 9, 4)
    a, b = torch.cat([x, torch.ones(*x.shape[:2], 1)], 2).flatten(0, 1).double(), four.flatten(0, 1).double()
    weights = torch.linalg.solve(a.T @ a + 30 * torch.eye(a.shape[1]), a.T @ b).float()

    def read(latents: Tensor) -> Tensor:
        y = latents.float().permute(0, 2, 1, 3, 4).flatten(2)
        found: Tensor = torch.cat([y, torch.ones(*y.shape[:2], 1)], 2) @ weights
        return found.flatten(1)[:, 3:]

    return read
