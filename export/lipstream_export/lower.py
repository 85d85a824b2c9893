"""PyTorch module -> ONNX file. All graphs of a bundle put their weights into one file, each tensor once."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx
import onnx_ir
import torch
from lipstream_models.weight_file import WEIGHTS
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from .ring_function import DOMAIN, KVRingWrite

OPSET = 23
ALIGNMENT = 64
INLINE_BYTES = 1024


class GraphModule(Protocol):
    """A module with names of its inputs and outputs, and example inputs for tracing."""

    @property
    def input_names(self) -> Sequence[str]: ...
    @property
    def output_names(self) -> Sequence[str]: ...
    def example(self) -> tuple[Tensor, ...]: ...


class WeightFile:
    """The bundle's shared external-data file.

    Equal tensors are stored once; float32 values that bfloat16 represents exactly are stored as bfloat16.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[bytes, int] = {}

    def move(self, model: onnx.ModelProto) -> None:
        """Move the large initializers of `model` to the file."""
        casts = []
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < INLINE_BYTES:
                continue
            data = tensor.raw_data
            if tensor.data_type == TensorProto.FLOAT:
                data, exact = _packed(data)
                if exact:
                    tensor.data_type = TensorProto.BFLOAT16
                    stored = f"{tensor.name}.bfloat16"
                    casts.append(helper.make_node("Cast", [stored], [tensor.name], to=TensorProto.FLOAT))
                    tensor.name = stored
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": WEIGHTS, "offset": self._store(data), "length": len(data)}.items():
                tensor.external_data.add(key=key, value=str(value))
        for node in reversed(casts):
            model.graph.node.insert(0, node)

    def place(self, weight: Tensor) -> dict[str, Any]:
        """The entry of `weight` in `PLACES`: see `lipstream_models.weight_file.read_weight`.

        A graph's copy is reused; a weight that no graph stores in the file (small ones are in the graphs) is added.
        """
        array = weight.detach().float().cpu().numpy()
        data, exact = _packed(array.tobytes())
        found = {"offset": 0, "shape": list(array.shape), "bfloat16": exact, "transposed": False}
        if array.ndim > 1 and not self._holds(data):
            turned, _ = _packed(array.reshape(len(array), -1).T.tobytes())
            if self._holds(turned):
                data, found["transposed"] = turned, True
        return {**found, "offset": self._store(data)}

    def _holds(self, data: bytes) -> bool:
        return hashlib.sha256(data).digest() in self._places

    def _store(self, data: bytes) -> int:
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self._places[key] = self._file.tell()
            self._file.write(data)
        return self._places[key]


def _packed(data: bytes) -> tuple[bytes, bool]:
    """`data`, float32 values, and False; or, if bfloat16 represents all of them exactly, as bfloat16, and True."""
    bits = np.frombuffer(data, np.uint32)
    if np.any(bits & 0xFFFF):
        return data, False
    return (bits >> 16).astype(np.uint16).tobytes(), True


def trace(module: torch.nn.Module, *, dynamic: tuple[dict[int, object], ...] | None = None) -> onnx_ir.Model:
    """`module` (a `GraphModule`) as an ONNX graph, opset 23, whose weights share the module's memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            module.example(),  # type: ignore[operator]
            dynamo=True,
            input_names=list(module.input_names),  # type: ignore[arg-type]
            output_names=list(module.output_names),  # type: ignore[arg-type]
            dynamic_shapes=(dynamic,) if dynamic else None,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model


def to_onnx(module: torch.nn.Module, *, dynamic: tuple[dict[int, object], ...] | None = None) -> onnx.ModelProto:
    """Trace `module` to a model that can be saved; it contains the function KVRingWrite if it uses it."""
    model = onnx_ir.to_proto(trace(module, dynamic=dynamic))
    if any(node.domain == DOMAIN.domain for node in model.graph.node):
        model.functions.append(KVRingWrite.to_function_proto())
        if DOMAIN.domain not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(helper.make_opsetid(DOMAIN.domain, DOMAIN.version))
    for node in [*model.graph.node]:
        node.ClearField("metadata_props")  # tracebacks of the exporting machine
        node.ClearField("doc_string")
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        value.ClearField("metadata_props")
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        if not tensor.raw_data:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return model


def save(model: onnx.ModelProto, path: Path, weights: WeightFile) -> None:
    """Write `model` to `path`, its weights to the file beside it."""
    weights.move(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path))
