"""The torch backend: the modules behind the graphs, run eagerly. Reference of the parity tests, and the baseline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from lipstream.backends import ChunkStream
from lipstream.backends.base import Array
from lipstream.backends.stepped import SteppedStream
from lipstream.backends.steps import Steps
from lipstream.bundle import Bundle
from lipstream_models import KVRing
from lipstream_models.parts import StudentParts
from lipstream_models.released.wav2vec import LiveWav2Vec, hidden_states
from lipstream_models.rope import rotate, spatial_angles, temporal_angles, token_angles
from torch import Tensor

from .audio import AudioEncoder
from .denoiser import RingAttention
from .video import VideoDecoder, VideoEncoder


class TorchSteps:
    """See `lipstream.backends.steps.Steps`. Runs on the weights' device; K and V have the type of the products."""

    def __init__(self, backend: TorchBackend) -> None:
        parts = backend.parts
        self._config = config = parts.config
        self._student, self._constants = parts.student, backend.constants
        size = config.crop_size
        frames = config.temporal * config.chunk_frames
        if parts.speech:
            self._audio = AudioEncoder(parts.speech, frames)
        if self._student:
            weight = self._student.patch_embedding.weight
            self._device = weight.device
            text = {name: x[None].to(weight) for name, x in self._constants.items() if name.startswith("text_")}
            self._text = [(text[f"text_k.{i}"], text[f"text_v.{i}"]) for i in range(config.num_layers)]
            self._ring = KVRing(config, dtype=weight.dtype, device=str(weight.device))
            self._spatial = spatial_angles(config.grid, config.head_dim)
        if encoder := parts.codec("encoder"):
            self._encoder = VideoEncoder(encoder, frames, size)
            self._encoder_memory: list[Tensor] = encoder.encoder_memory(2, *size)
        if decoder := parts.codec("decoder"):
            self._decoder = VideoDecoder(decoder, config.chunk_frames, size)
            self._decoder_memory: list[Tensor] = decoder.decoder_memory(1, *size)

    @torch.inference_mode()
    def encode_audio(self, samples: Array) -> Array:
        return _array(self._audio(torch.from_numpy(samples)))

    @torch.inference_mode()
    def encode_video(self, frames: Array) -> Array:
        mask = self._constants["mask.pixel"]
        latents, *self._encoder_memory = self._encoder(torch.from_numpy(frames), mask, *self._encoder_memory)
        return _array(latents)

    @torch.inference_mode()
    def decode(self, latent: Array) -> Array:
        frames, *self._decoder_memory = self._decoder(torch.from_numpy(latent), *self._decoder_memory)
        return _array(frames)

    @torch.inference_mode()
    def begin_chunk(self, chunk: int) -> None:
        c = self._config
        self._ring.begin(chunk)
        frames = torch.arange(c.chunk_frames) + chunk * c.chunk_frames
        angles = token_angles(temporal_angles(frames, c.head_dim), self._spatial)
        self._cos, self._sin = (x.float().to(self._device) for x in (angles.cos(), angles.sin()))

    @torch.inference_mode()
    def denoise(self, latent: Array, condition: Array, audio: Array, step: int) -> Array:
        assert self._student, "this bundle has no denoiser"
        constants = self._constants
        velocity = self._student.denoise(
            *self._tensors(latent, condition, audio),
            constants[f"modulation.{step}"],
            self._text,
            self._attention(),
        )
        return _array(velocity)

    @torch.inference_mode()
    def context(self, latent: Array, condition: Array, audio: Array) -> None:
        assert self._student, "this bundle has no denoiser"
        attend = self._attention()
        modulation = self._constants[f"modulation.{len(self._config.t_list) - 1}"]
        self._student.context(*self._tensors(latent, condition, audio), modulation, self._text, attend, attend.leave)

    def _attention(self) -> RingAttention:
        def write(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return self._ring.write(layer, rotate(k, self._cos[:, :, None], self._sin[:, :, None]), v)

        assert self._student
        return RingAttention(write, self._cos, self._sin, self._student)

    def _tensors(self, latent: Array, condition: Array, audio: Array) -> tuple[Tensor, Tensor, Tensor]:
        def tensor(x: Array) -> Tensor:
            return torch.from_numpy(x).to(self._device)

        return tensor(latent), tensor(condition), tensor(audio)


def _array(x: Tensor) -> Array:
    array: Array = x.float().cpu().numpy()
    return array


class TorchBackend:
    """The parts of a student, run by PyTorch.

    Attributes:
        parts: on the device and in the precision of the computation. constants: `parts.constants()`.
    """

    reuses_streams = False

    def __init__(self, parts: StudentParts) -> None:
        self.parts, self.constants = parts, parts.constants()
        for module in parts.modules().values():
            module.eval()

    @property
    def encode_clip(self) -> Callable[[Array, int], Array] | None:
        """See `lipstream.backends.base.Backend`."""
        speech = self.parts.speech
        return partial(_clip_features, speech) if isinstance(speech, LiveWav2Vec) else None

    def open_stream(self) -> ChunkStream:
        return self.stepped(self.open_steps())

    def stepped(self, steps: Steps) -> SteppedStream:
        """A stream of chunks on `steps`: those of `open_steps`, or a wrapper of them."""
        config, identity = self.parts.config, self.parts.identity
        mask = _array(self.constants["mask.latent"])
        return SteppedStream(
            steps, config.t_list, config.sequence, mask, None if identity is None else _array(identity)
        )

    def open_steps(self) -> TorchSteps:
        """A stream that is called graph by graph, for tools that need intermediate results."""
        return TorchSteps(self)


@torch.inference_mode()
def _clip_features(speech: LiveWav2Vec, samples: Array, frames: int) -> Array:
    return _array(hidden_states(speech.model, torch.from_numpy(samples), frames))


def open_bundle(bundle: Bundle, *, threads: int = 0) -> TorchBackend:
    """The entry point of the backend "torch".

    Args:
        bundle: an fp32 bundle that `lipstream export` wrote.
        threads: CPU threads of the whole process; 0 leaves PyTorch's default.

    Raises:
        BackendError: the bundle holds no weights that PyTorch could read.
    """
    if threads:
        torch.set_num_threads(threads)
    return TorchBackend(StudentParts.from_bundle(bundle))
