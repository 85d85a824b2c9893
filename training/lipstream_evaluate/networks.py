"""Metrics that need trained networks: LPIPS, CSIM, and the features of FID and FVD.

The networks are those of well-known packages; their weights are read from files of the caller, since none of them may
be shipped. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lipstream.errors import CheckpointError, MissingExtraError
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[np.uint8]
_T = TypeVar("_T")

WEIGHTS = {
    "lpips": "AlexNet of torchvision: alexnet-owt-7be5be79.pth",
    "arcface": "a face recogniser as ONNX, 112 pixels: w600k_r50.onnx of InsightFace (non-commercial research only)",
    "inception": "Inception of FID: weights-inception-2015-12-05-6726825d.pth of torch-fidelity",
    "i3d": "I3D of FVD: i3d_pretrained_400.pt of cd-fvd",
}
"""The file of weights for each option."""

WINDOW = 16
"""Frames of one input of I3D."""


class Lpips:
    """LPIPS with AlexNet (Zhang et al. 2018), by the package `lpips`, which contains the linear layers."""

    def __init__(self, weights: Path) -> None:
        with _package("lpips"):
            import lpips
        trunk = _tensors(weights)
        with contextlib.redirect_stdout(io.StringIO()):
            self._net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)

        def fill() -> None:
            for name, layer in self._net.net.named_modules():  # slice2.3 is features.3
                if isinstance(layer, torch.nn.Conv2d):
                    number = name.rsplit(".", 1)[1]
                    layer.load_state_dict({key: trunk[f"features.{number}.{key}"] for key in ("weight", "bias")})

        _fits(weights, "lpips", fill)

    @torch.inference_mode()
    def __call__(self, a: Image, b: Image) -> float:
        """Distance of two pictures uint8 [H, W, 3]; 0 for equal ones."""
        x, y = (torch.from_numpy(z.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for z in (a, b))
        return float(self._net(x, y))


class Inception:
    """The 2048 features of FID, by the package `torch-fidelity`."""

    def __init__(self, weights: Path) -> None:
        with _package("torch-fidelity"):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        _tensors(weights)  # checked first, since the package would execute any pickle
        self._net = _fits(
            weights, "inception", lambda: FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
        )

    @torch.inference_mode()
    def __call__(self, picture: Image) -> NDArray[np.float32]:
        """float32 [2048] of a picture uint8 [H, W, 3]."""
        features: Tensor = self._net(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])[0]
        return features[0].numpy()


class I3d:
    """The 400 logits of FVD, by the package `cd-fvd`."""

    def __init__(self, weights: Path) -> None:
        with _package("cd-fvd"):
            from cdfvd.third_party.i3d.utils import load_i3d_model, preprocess_i3d
        _tensors(weights)
        self._prepare = preprocess_i3d
        self._net = _fits(weights, "i3d", lambda: load_i3d_model(torch.device("cpu"), str(weights)))

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [400] of uint8 [16, H, W, 3]."""
        logits: Tensor = self._net(self._prepare(frames[None]))
        return logits[0].numpy()


class ArcFace:
    """Identity embeddings by any ONNX face recogniser of the usual alignment."""

    _TEMPLATE = np.array(
        [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
    )

    def __init__(self, weights: Path) -> None:
        import onnxruntime as ort

        with _package("scikit-image"):
            from skimage.transform import SimilarityTransform
        self._transform = SimilarityTransform
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not weights.is_file():
            raise CheckpointError(f"no such file: {weights}", expected=WEIGHTS["arcface"])
        self._session = _fits(
            weights, "arcface", lambda: ort.InferenceSession(str(weights), options, ["CPUExecutionProvider"])
        )
        self._input = self._session.get_inputs()[0].name
        if list(self._session.get_inputs()[0].shape[1:]) != [3, 112, 112]:
            raise CheckpointError(
                f"{weights} takes {self._session.get_inputs()[0].shape}",
                expected=f"[N, 3, 112, 112]: {WEIGHTS['arcface']}",
            )

    def __call__(self, frame: Image, five: NDArray[np.float64]) -> NDArray[np.float32]:
        """Unit vector of the face with eyes, nose and corners of the mouth at `five` [5, 2] in a frame uint8."""
        import cv2

        matrix = self._transform.from_estimate(five, self._TEMPLATE).params[:2]
        face = cv2.warpAffine(frame, matrix, (112, 112)).astype(np.float32)
        (vector,) = self._session.run(None, {self._input: (face.transpose(2, 0, 1)[None] - 127.5) / 127.5})
        return np.asarray(vector[0] / np.linalg.norm(vector[0]), np.float32)


@contextlib.contextmanager
def _package(name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        raise MissingExtraError(
            f"the package {name} cannot be imported: {error}", fix="pip install 'lipstream[evaluate]'"
        ) from error


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """A file of tensors, read without executing code in it."""
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{path} holds no weights: {str(error).splitlines()[0]}") from error
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise CheckpointError(f"{path} holds no weights", expected="a dictionary of tensors")
    return found


def _fits(path: Path, kind: str, load: Callable[[], _T]) -> _T:
    """What `load` returns.

    Raises:
        CheckpointError: `load` failed, since the file is of another network.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return load()
    except Exception as error:  # packages and ONNX Runtime raise different types for weights that do not fit
        raise CheckpointError(
            f"{path} is not what --{kind} takes: {str(error).splitlines()[0]}", expected=WEIGHTS[kind]
        ) from error


def load_networks(files: Mapping[str, Path]) -> dict[str, Any]:
    """Networks by the names of `WEIGHTS`, of the files given."""
    kinds = {"lpips": Lpips, "arcface": ArcFace, "inception": Inception, "i3d": I3d}
    return {name: kinds[name](path) for name, path in files.items()}
