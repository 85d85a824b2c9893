"""A graph without its velocity: what `onnx` accepts, and what only the velocity needs is gone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lipstream.backends import onnxruntime as backend
from lipstream.bundle import Bundle
from lipstream.bundle.onnx_header import without_output


def test_what_remains_is_what_the_other_outputs_need() -> None:
    bundle = Bundle.load("tiny")
    path = bundle.file("denoiser.onnx")
    whole, pruned = onnx.load(path, load_external_data=False), without_output(path.read_bytes(), "velocity")
    model = onnx.load_from_string(pruned)
    rings = [f"{kind}_out.{i}" for i in range(bundle.manifest.geometry.num_layers) for kind in "kv"]
    assert [x.name for x in model.graph.output] == rings
    makers = {name: node for node in whole.graph.node for name in node.output}
    needed, waiting = set[str](), [*rings]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.output[0] not in needed:
            needed.add(node.output[0])
            waiting += node.input
    assert [*model.graph.node] == [node for node in whole.graph.node if node.output[0] in needed]
    assert 0.8 < len(needed) / len(whole.graph.node) < 0.97
    for field in ("input", "initializer", "value_info", "name"):
        assert getattr(model.graph, field) == getattr(whole.graph, field)
    assert model.functions == whole.functions
    assert model.opset_import == whole.opset_import


def test_the_context_pass_writes_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load("tiny")
    own = backend.OnnxRuntimeBackend(bundle)
    monkeypatch.setattr(backend, "MOST_TWICE", 0)
    shared = backend.OnnxRuntimeBackend(bundle)
    assert {*own.graphs} - {*shared.graphs} == {"context"}
    g = bundle.manifest.geometry
    streams, rng = (own.open_steps(), shared.open_steps()), np.random.default_rng(0)
    for chunk in range(4):
        latent = rng.standard_normal((g.latent_channels, 3, *g.latent_size), np.float32)
        condition = rng.standard_normal((3 * g.latent_channels + 1, 3, *g.latent_size), np.float32)
        audio = rng.standard_normal((12, bundle.manifest.audio.features), np.float32)
        found = []
        for stream in streams:
            stream.begin_chunk(chunk)
            found.append(stream.denoise(latent, condition, audio, 0))
            stream.context(latent, condition, audio)
        np.testing.assert_array_equal(*found)  # the later ones depend on what the context pass wrote


@pytest.mark.parametrize("data", [b"\x3a\xff", b"\x3a\x02\x0a\x05", bytes(range(64))])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        without_output(data, "velocity")
