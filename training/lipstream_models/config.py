"""Sizes of the models, one frozen dataclass each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

_Config = TypeVar("_Config")


def config_from_json(kind: type[_Config], fields: dict[str, Any]) -> _Config:
    """The config of class `kind` that `dataclasses.asdict` and JSON turned into `fields`: lists become tuples again.

    Raises:
        TypeError: fields are missing or unknown.
    """
    return kind(**{name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()})


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the causal DiT. Field defaults are the sizes that the published students share.

    Attributes:
        dim, ffn_dim, num_heads, num_layers: transformer sizes; ``dim / num_heads`` is the head dimension, even.
        window, sink: latent frames attended, and how many of them are the stream's first ones.
        chunk_frames: latent frames generated at once.
        latent_size: (height, width) of a latent frame; multiples of the patch.
        latent_channels: channels of the codec's latent.
        spatial, temporal: video pixels per latent pixel along each axis; video frames per latent frame.
        crop_box: (left, top, right, bottom) of the crop on the 420 x 560 alignment canvas.
        sequence: what the last `latent_channels` of the condition hold: "reference", the unmasked driving video, or
            "masked", the driving video with the mouth hidden, so that the student cannot copy the old mouth.
        text_dim, text_len: width and rows of the (constant) prompt embedding.
        refine: channels of the convolutions after the head (`Refinement`); 0: none, as in the published students.
        audio_dim: audio features per video frame. audio_hidden: width to which AudioPack projects four frames.
        t_list: times of the denoising passes, noisiest first, ending in 0.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    window: int = 7
    sink: int = 1
    chunk_frames: int = 3
    latent_size: tuple[int, int] = (64, 64)
    latent_channels: int = 16
    spatial: int = 8
    temporal: int = 4
    crop_box: tuple[float, float, float, float] = (0.0, 0.0, 420.0, 560.0)
    sequence: str = "reference"
    patch: tuple[int, int, int] = (1, 2, 2)
    refine: int = 0
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    audio_dim: int = 10752
    audio_hidden: int = 32
    t_list: tuple[float, ...] = (0.999, 0.769, 0.0)

    @property
    def in_channels(self) -> int:
        """Noisy latent, reference frame, mask, masked video, reference sequence."""
        return 4 * self.latent_channels + 1

    @property
    def crop_size(self) -> tuple[int, int]:
        """(height, width) of the aligned crop in pixels."""
        return self.spatial * self.latent_size[0], self.spatial * self.latent_size[1]

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a latent frame, (rows, columns)."""
        return self.latent_size[0] // self.patch[1], self.latent_size[1] // self.patch[2]

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def audio_layers(self) -> range:
        """Blocks that get the audio added to their input: 2 .. num_layers // 2 (inclusive)."""
        return range(2, self.num_layers // 2 + 1)


@dataclass(frozen=True)
class TAEHVConfig:
    """Sizes of the video codec; the defaults are those of the released TAEHV weights, ``taew2_1``.

    Attributes:
        encoder: "taehv", or "linear": one strided convolution, without state.
        encoder_width: of the TAEHV encoder. decoder_widths: of the decoder's four stages.
        spatial: video pixels per latent pixel along each axis: 8, or 4, where the first decoder stage keeps its size.
        memory_blocks: number per stage.
        upsample: "nearest" (`TGrow` after it), or "shuffle" (`ShuffleGrow`).
        clamp: the decoder first maps latents to ``clamp * tanh(latent / clamp)``.
    """

    encoder: str = "taehv"
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    latent_channels: int = 16
    spatial: int = 8
    memory_blocks: int = 3
    upsample: str = "nearest"
    clamp: float = 3.0


STUDENTS: dict[str, StudentConfig] = {
    "tiny": StudentConfig(
        dim=192,
        ffn_dim=576,
        num_heads=3,
        num_layers=8,
        latent_size=(24, 24),
        latent_channels=24,
        spatial=4,
        crop_box=(58.0, 248.0, 362.0, 552.0),
        sequence="masked",
        patch=(1, 3, 3),
        refine=32,
        text_dim=32,
        text_len=4,
        audio_dim=64,
        audio_hidden=96,
    ),
    "micro": StudentConfig(
        dim=128,
        ffn_dim=256,
        num_heads=2,
        num_layers=5,
        latent_size=(4, 4),
        latent_channels=24,
        spatial=8,
        crop_box=(58.0, 248.0, 362.0, 552.0),
        sequence="masked",
        text_dim=8,
        text_len=2,
        audio_dim=64,
        audio_hidden=64,
    ),
    "1.3b": StudentConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "14b": StudentConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}
TINY_TAEHV = TAEHVConfig(
    encoder="linear",
    decoder_widths=(80, 64, 32, 16),
    latent_channels=24,
    spatial=4,
    memory_blocks=2,
    upsample="shuffle",
    clamp=30.0,
)
