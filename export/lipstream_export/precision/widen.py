"""BF16 and FP8 graphs for ONNX Runtime's CPU provider, which cannot compute in bfloat16: the same nodes in float32.

Weights keep their rounded values and FP8 layers their quantise-dequantise pairs, so the result has the errors of both,
but not those of rounding BF16 products. Graphs are checked this way on machines without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import torch
from lipstream.bundle import CONSTANTS, Bundle, writing
from lipstream_models.layers import Conv2d, Conv3d, Linear
from lipstream_models.weight_file import WEIGHTS
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, external_data_helper, numpy_helper
from torch import nn

from ..lower import WeightFile
from .fp8 import FP8Linear

__all__ = ["widen", "widen_bundle", "widen_module"]


def widen(model: ModelProto) -> None:
    """Convert all bfloat16 of `model` (whose weights are in memory) to float32, in place."""
    for graph in _graphs(model.graph):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    _widen_tensor(attribute.t)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] * attribute.HasField("g") + [*attribute.graphs]:
                yield from _graphs(inner)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        values = numpy_helper.to_array(tensor).view(ml_dtypes.bfloat16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def widen_bundle(bundle: Bundle, path: str | os.PathLike[str]) -> Bundle:
    """Write `bundle` in float32 to the folder `path`; ONNX Runtime can run it."""
    with writing(path, replace(bundle.manifest, precision="fp32", files={})) as folder:
        with (folder / WEIGHTS).open("wb") as file:
            weights = WeightFile(file)
            for name in bundle.manifest.files:
                if name.endswith(".onnx"):
                    model = onnx.load(bundle.path / name, load_external_data=False)
                    external_data_helper.load_external_data_for_model(model, str(bundle.path))
                    widen(model)
                    weights.move(model)
                    (folder / name).write_bytes(model.SerializeToString(deterministic=True))
        (folder / CONSTANTS).write_bytes((bundle.path / CONSTANTS).read_bytes())
    return Bundle.load(Path(path))


def widen_module(module: nn.Module) -> nn.Module:
    """Convert the layers of `module` that compute in bfloat16 to float32, with their present weights, in place."""
    for layer in module.modules():
        if isinstance(layer, Linear | Conv2d | Conv3d):
            layer.to(torch.float32)
        elif isinstance(layer, FP8Linear):
            layer.bias.data = layer.bias.data.float()
    return module
