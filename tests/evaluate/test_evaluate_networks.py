"""LPIPS, FID and FVD by the real packages, in a separate environment, with random weights.

They need torchvision. The one on PyPI is built for PyTorch with CUDA and breaks with a CPU build of PyTorch, so it is
installed separately, and the operators that it then lacks are declared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import json, sys
from pathlib import Path
import torch
if not torch.cuda.is_available():
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou) -> Tensor")
import numpy as np, torchvision, lpips, torch_fidelity
from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d
from lipstream.errors import CheckpointError
from lipstream_evaluate.networks import load_networks
from lipstream_evaluate.statistics import frechet
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

folder = Path(sys.argv[1])
torch.manual_seed(0)
alexnet = torchvision.models.alexnet(weights=None)
torch.save(alexnet.state_dict(), folder / "alexnet.pth")
torch.save(InceptionI3d(400, in_channels=3).state_dict(), folder / "i3d.pt")
empty = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
real_load = torch.load
torch.load = lambda *_, **__: {}
torch.nn.Module.load_state_dict, keep = lambda self, *_: None, torch.nn.Module.load_state_dict
inception = FeatureExtractorInceptionV3("x", ["2048"], "none")
torch.nn.Module.load_state_dict, torch.load = keep, real_load
torch.save(inception.state_dict(), folder / "inception.pth")

files = {"lpips": folder / "alexnet.pth", "inception": folder / "inception.pth", "i3d": folder / "i3d.pt"}
networks = load_networks(files)
rng = np.random.default_rng(0)
pictures = rng.integers(0, 256, (6, 224, 224, 3)).astype(np.uint8)
found = {}

reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
for name, layer in reference.net.named_modules():
    if isinstance(layer, torch.nn.Conv2d):
        layer.load_state_dict(alexnet.features[int(name.split(".")[-1])].state_dict())
a, b = (lpips.im2tensor(p) for p in pictures[:2])
with torch.no_grad():
    found["lpips"] = [networks["lpips"](pictures[0], pictures[1]), float(reference(a, b))]
found["lpips_same"] = networks["lpips"](pictures[0], pictures[0])

ours = np.stack([networks["inception"](p) for p in pictures])
tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2)
theirs = inception(tensor)[0]
found["inception"] = float(np.abs(ours - theirs.numpy()).max() / np.abs(ours).max())
statistics = [fid_features_to_statistics(x.double()) for x in (theirs[:3], theirs[3:])]
library = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
found["fid"] = [frechet(ours[:3], ours[3:]), library]

windows = rng.integers(0, 256, (3, 16, 64, 64, 3)).astype(np.uint8)
logits = np.stack([networks["i3d"](w) for w in windows])
found["i3d"] = list(logits.shape)
found["fvd_same"] = frechet(logits, logits)

found["refused"] = []
for kind in files:
    other = files["i3d" if kind == "lpips" else "lpips"]
    try:
        load_networks({kind: other})
    except CheckpointError as error:
        found["refused"].append(other.name in str(error))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_metrics_by_networks_are_those_of_their_packages(tmp_path: Path) -> None:
    apart = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(apart), "--no-deps"]
    packages = ["torchvision==0.28.0", "lpips", "torch-fidelity", "cd-fvd", "einops", "requests", "urllib3", "idna"]
    subprocess.run([*pip, *packages, "certifi", "charset-normalizer", "pillow"], check=True, timeout=600)
    environment = os.environ | {"PYTHONPATH": str(apart)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lpips"][0] == pytest.approx(found["lpips"][1], rel=1e-4)
    assert found["lpips"][0] > 0
    assert found["lpips_same"] == 0
    assert found["inception"] < 1e-4
    assert found["fid"][0] == pytest.approx(found["fid"][1], rel=1e-3)
    assert found["i3d"] == [3, 400]
    assert found["fvd_same"] == pytest.approx(0, abs=1e-6)
    assert found["refused"] == [True, True, True]
