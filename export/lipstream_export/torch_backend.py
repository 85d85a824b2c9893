"""The torch backend: the modules behind the graphs, run eagerly. Reference of every parity test, and the baseline."""

from __future__ import annotations

import json

import numpy as np
import torch
from lipstream.backends.base import Array
from lipstream.bundle import REBUILD, Bundle
from lipstream.errors import BackendError
from lipstream_training.models import TAEHV, CausalDiT, KVRing, SpeechEncoder, StudentConfig, TAEHVConfig
from lipstream_training.models.rope import rotate, spatial_angles, temporal_angles, token_angles
from torch import Tensor

from .audio import AudioEncoder
from .bundle import Parts, student_config
from .denoiser import FOLDED, RingAttention
from .lower import PLACES, WEIGHTS, read_weight
from .video import VideoDecoder, VideoEncoder


class TorchStream:
    """See `lipstream.backends.Stream`. All on the weights' device; K and V in the type of the products."""

    def __init__(self, backend: TorchBackend) -> None:
        self._config = config = backend.config
        self._student, self._constants = backend.student, backend.constants
        size = config.crop_size
        frames = config.temporal * config.chunk_frames
        if backend.speech:
            self._audio = AudioEncoder(backend.speech, frames)
        if self._student:
            weight = self._student.patch_embedding.weight
            self._device = weight.device
            text = {name: x[None].to(weight) for name, x in self._constants.items() if name.startswith("text_")}
            self._text = [(text[f"text_k.{i}"], text[f"text_v.{i}"]) for i in range(config.num_layers)]
            self._ring = KVRing(config, dtype=weight.dtype, device=str(weight.device))
            self._spatial = spatial_angles(config.grid, config.head_dim)
        if backend.taehv:
            self._encoder = VideoEncoder(backend.taehv, frames, size)
            self._decoder = VideoDecoder(backend.taehv, config.chunk_frames, size)
            self._encoder_memory: list[Tensor] = backend.taehv.encoder_memory(2, *size)
            self._decoder_memory: list[Tensor] = backend.taehv.decoder_memory(1, *size)

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
            constants[f"time.{step}"],
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
    """A bundle as PyTorch modules, rebuilt with the weights of its graphs.

    Args:
        bundle: an fp32 bundle that `lipstream export` wrote.
        threads: CPU threads (of the whole process), 0 to leave PyTorch's own choice.

    Raises:
        BackendError: the bundle was written for other backends and holds no weights that PyTorch could read.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        if PLACES not in bundle.manifest.files:
            raise BackendError(f"{bundle.path} has no {PLACES}, from which PyTorch gets its weights", fix=REBUILD)
        model = bundle.manifest.model
        config = student_config(model["config"])
        student = taehv = None
        if "denoiser.onnx" in bundle.manifest.files:
            student = CausalDiT(config)
            _load(student, bundle, "student")
        if "taehv" in model:
            taehv = TAEHV(TAEHVConfig(**{**model["taehv"], "decoder_widths": tuple(model["taehv"]["decoder_widths"])}))
            _load(taehv, bundle, "taehv")
        speech = None
        if "audio_encoder.onnx" in bundle.manifest.files:
            speech = SpeechEncoder()
            _load(speech, bundle, "speech")
        constants = {name: torch.from_numpy(x) for name, x in bundle.constants.items()}
        self._set(config, student, taehv, speech, constants)

    @classmethod
    def of(cls, parts: Parts, config: StudentConfig) -> TorchBackend:
        """The backend of models that are in memory already."""
        backend = cls.__new__(cls)
        backend._set(config, parts.student, parts.taehv, parts.speech, parts.constants())
        return backend

    def _set(
        self,
        config: StudentConfig,
        student: CausalDiT | None,
        taehv: TAEHV | None,
        speech: SpeechEncoder | None,
        constants: dict[str, Tensor],
    ) -> None:
        self.config, self.constants = config, constants
        self.student, self.taehv = student and student.eval(), taehv and taehv.eval()
        self.speech = speech and speech.eval()

    def open_stream(self) -> TorchStream:
        return TorchStream(self)


def _load(module: torch.nn.Module, bundle: Bundle, part: str) -> None:
    """Give `module` its weights; those that act through the constants alone stay as they are."""
    places = json.loads(bundle.file(PLACES).read_text())
    data = np.memmap(bundle.file(WEIGHTS), np.uint8, "r")
    names = [name for name in module.state_dict() if not FOLDED.search(name)]
    module.load_state_dict({name: read_weight(data, places[f"{part}.{name}"]) for name in names}, strict=False)
