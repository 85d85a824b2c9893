"""Engines with and without faults. ONNX Runtime takes the place of the GPU: it runs the lowered graphs in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from doubles import trt
from lipstream.bundle import Bundle
from lipstream_engines.codes import E4M3
from lipstream_engines.lower_ring import ATTENDED, load_graph, lower_ring
from lipstream_export.precision.widen import widen
from onnx import ModelProto, external_data_helper
from trt_bodies import with_bodies

Arrays = dict[str, Any]


def session_of(
    source: Bundle, graph: str, ring: Any, attends: Any = "length", *, fused: bool = True
) -> onnxruntime.InferenceSession:
    """A graph, lowered; TensorRT's operators and the plugin are given bodies."""
    model = lower_ring(load_graph(source.path / f"{graph}.onnx"), source.manifest.geometry, ring, attends)
    if any(node.domain in ("trt", "lipstream") for node in model.graph.node):
        model = with_bodies(model)
    return open_session(model, source, fused=fused)


def open_session(model: ModelProto, source: Bundle, *, fused: bool = True) -> onnxruntime.InferenceSession:
    """A graph of standard operators with the weights of `source`, in float32.

    Args:
        fused: whether ONNX Runtime may fuse nodes, which changes the last bits of sums.
    """
    external_data_helper.load_external_data_for_model(model, str(source.path))
    widen(model)
    options = onnxruntime.SessionOptions()
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Engine:
    """One lowered graph; `given` and `taken` may change what goes in and comes out."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def memories(self) -> dict[str, tuple[int, ...]]:
        return {x.name: tuple(x.shape) for x in self.session.get_inputs() if x.name.startswith("memory.")}

    def ring_in_fp8(self) -> bool:
        return any(x.type == "tensor(float8e4m3fn)" for x in self.session.get_inputs())

    def infer(self, inputs: Arrays) -> Arrays:
        given = {name: x.view(np.uint8) if x.dtype == E4M3 else x for name, x in self.given(inputs).items()}
        found = trt.run(self.session, given)
        return self.taken({name: x.view(E4M3) if x.dtype == np.uint8 else x for name, x in found.items()})

    def given(self, inputs: Arrays) -> Arrays:
        return inputs

    def taken(self, outputs: Arrays) -> Arrays:
        return outputs


class Imprecise(Engine):
    def taken(self, outputs: Arrays) -> Arrays:
        return outputs | ({"velocity": outputs["velocity"] * 1.02} if "velocity" in outputs else {})


class IgnoresTheLength(Engine):
    """Attends to the whole window, whatever it is told."""

    def given(self, inputs: Arrays) -> Arrays:
        return inputs | ({ATTENDED: np.array([7], np.int64)} if ATTENDED in inputs else {})


class AlwaysTheFirstBlock(Engine):
    def given(self, inputs: Arrays) -> Arrays:
        return inputs | ({"slot": np.zeros(1, np.int64)} if "slot" in inputs else {})


class WritesBeyond(Engine):
    """Changes one number of the last slot, which is read in no chunk before the third."""

    def taken(self, outputs: Arrays) -> Arrays:
        if "v_out.0" in outputs:
            outputs["v_out.0"][0, 0, -1, 0] = 8191
        return outputs


class OneFrameLess(Engine):
    def given(self, inputs: Arrays) -> Arrays:
        return inputs | ({ATTENDED: inputs[ATTENDED] - 1} if ATTENDED in inputs else {})
