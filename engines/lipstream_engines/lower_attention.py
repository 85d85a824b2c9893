"""Lower attention that TensorRT has no fused kernel for: heads of more than 256, or float32 operands.

TensorRT's parser turns ONNX's Attention into a layer that is one fused kernel or none. The Wan VAE has one head of 384,
and wav2vec 2.0 stays in float32. Their nodes become product, softmax, product; other nodes keep the fused kernel.
"""

from __future__ import annotations

import math
from typing import Any

from lipstream.errors import LipStreamInternalError
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

LARGEST_HEAD = 256
"""Largest head size of a fused kernel."""
_FUSED = (TensorProto.BFLOAT16, TensorProto.FLOAT16)
_PLAIN = {"scale"}
"""Attributes that are lowered; the graphs use no others, except with their default, 0."""


def lower_attention(model: ModelProto) -> ModelProto:
    """Return `model` (its weights may be external) with every Attention node in a form that TensorRT can build."""
    if not any(node.op_type == "Attention" for node in model.graph.node):
        return model
    types = _types(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        dtype, size = types.get(node.input[1], (0, 0)) if node.op_type == "Attention" else (0, 0)
        if node.op_type != "Attention" or (dtype in _FUSED and 0 < size <= LARGEST_HEAD):
            nodes.append(node)
        elif not dtype or not size:
            raise LipStreamInternalError(f"type or head size of the attention {node.name} is not known")
        else:
            nodes += _lowered(node, dtype, size)
    return with_nodes(model, nodes)


def with_nodes(model: ModelProto, nodes: list[NodeProto]) -> ModelProto:
    """A copy of `model` with these nodes."""
    lowered = ModelProto()
    lowered.CopyFrom(model)
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)
    return lowered


def _types(model: ModelProto) -> dict[str, tuple[int, int]]:
    """Element type and last size (0: variable) of every [B, H, n, D] value."""
    graph = shape_inference.infer_shapes(model).graph
    tensors = {x.name: x.type.tensor_type for x in [*graph.input, *graph.value_info]}
    return {name: (x.elem_type, x.shape.dim[3].dim_value) for name, x in tensors.items() if len(x.shape.dim) == 4}


def _lowered(node: NodeProto, dtype: int, size: int) -> list[NodeProto]:
    """The same attention of standard operators.

    Logits and softmax are float32, as inside a fused kernel: rounded to bfloat16, a logit of 10 would be off by 0.02.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    odd = [name for name, value in given.items() if value and name not in _PLAIN]
    if odd or len(node.input) > 4 or len(node.output) > 1:
        raise LipStreamInternalError(f"the attention {node.name} has {', '.join(odd) or 'a cache'}")
    q, k, v, mask = [*node.input, ""][:4]
    out: list[NodeProto] = []

    def add(kind: str, inputs: list[str], part: str, **attributes: Any) -> str:
        name = f"{node.output[0]}.{part}"
        out.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def float32(x: str, part: str) -> str:
        return x if dtype == TensorProto.FLOAT else add("Cast", [x], part, to=TensorProto.FLOAT)

    scale = add("Constant", [], "scale", value_float=float(given.get("scale") or 1 / math.sqrt(size)))
    scaled = add("Mul", [float32(q, "q"), scale], "scaled")
    turned = add("Transpose", [float32(k, "k")], "turned", perm=[0, 1, 3, 2])
    logits = add("MatMul", [scaled, turned], "logits")
    if mask:
        logits = add("Add", [logits, float32(mask, "mask")], "masked")
    weights = add("Softmax", [logits], "weights", axis=-1)
    if dtype != TensorProto.FLOAT:
        weights = add("Cast", [weights], "rounded", to=dtype)
    out.append(helper.make_node("MatMul", [weights, v], [node.output[0]], name=node.name))
    return out
