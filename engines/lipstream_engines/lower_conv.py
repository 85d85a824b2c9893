"""Lower 3-D convolutions to 2-D ones: the taps in time become channels, and the frames become the batch.

For GPUs on which TensorRT's kernels for 2-D convolutions are the faster ones. One convolution over kt times the
channels, rather than a sum of kt convolutions: its products are added up inside one kernel, as those of the 3-D one,
and no partial sum is rounded to bfloat16. The price is a copy of the input with kt times the channels; a kernel of one
frame needs none.

The weights stay where they are: Transpose and Reshape of a constant, which TensorRT folds when it builds.
"""

from __future__ import annotations

from typing import Any, Literal

from lipstream.errors import LipStreamInternalError
from onnx import ModelProto, NodeProto, helper, shape_inference

from .lower_attention import with_nodes

Convolutions = Literal["3d", "2d"]
Shape = tuple[int, ...]


def lower_conv(model: ModelProto) -> ModelProto:
    """Return `model` (its weights may be external) with 2-D convolutions in place of all 3-D ones.

    Raises:
        LipStreamInternalError: one that pads in time, is dilated or grouped, or has a variable shape. No graph does.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node):
        return model
    shapes = _shapes(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Conv" and len(shapes.get(node.input[1], ())) == 5:
            nodes += _lowered(node, shapes)
        else:
            nodes.append(node)
    return with_nodes(model, nodes)


def _shapes(model: ModelProto) -> dict[str, Shape]:
    """Shape of every value, 0 for a variable size."""
    graph = shape_inference.infer_shapes(model).graph
    tensors = {x.name: x.type.tensor_type.shape.dim for x in [*graph.input, *graph.value_info, *graph.output]}
    found = {name: tuple(int(size.dim_value) for size in dim) for name, dim in tensors.items()}
    return found | {x.name: tuple(x.dims) for x in graph.initializer}


def _lowered(node: NodeProto, shapes: dict[str, Shape]) -> list[NodeProto]:
    """[N, C, T, H, W] -> [N, kt C, T', H, W] -> [N T', kt C, H, W] -> convolved -> [N, O, T', H', W']."""
    x, weight, *bias = node.input
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    sizes = [shapes.get(name, ()) for name in (x, weight, node.output[0])]
    known = all(len(size) == 5 and 0 not in size for size in sizes)
    pads, strides = given.get("pads", [0] * 6), given.get("strides", [1] * 3)
    plain = given.get("auto_pad", b"NOTSET") == b"NOTSET" and given.get("group", 1) == 1
    if not known or not plain or {*given.get("dilations", [1])} != {1} or pads[0] or pads[3]:
        raise LipStreamInternalError(
            f"the convolution {node.name} of {sizes} with {given}; expected known shapes, one group, no dilation and "
            "no padding in time"
        )
    (batch, channels, _, height, width), (_, _, taps, *kernel), (_, outputs, frames, *size) = sizes
    out: list[NodeProto] = []

    def add(kind: str, inputs: list[str], part: str, **attributes: Any) -> str:
        name = f"{node.output[0]}.{part}"
        out.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def numbers(part: str, *values: int) -> str:
        return add("Constant", [], part, value_ints=values)

    def reshape(value: str, part: str, *shape: int) -> str:
        return add("Reshape", [value, numbers(f"{part}.shape", *shape)], part)

    if taps > 1 or strides[0] > 1:
        axis, step = numbers("axis", 2), numbers("step", strides[0])
        last = (frames - 1) * strides[0] + 1
        slices = []
        for tap in range(taps):
            start, end = numbers(f"start.{tap}", tap), numbers(f"end.{tap}", tap + last)
            slices.append(add("Slice", [x, start, end, axis, step], f"tap.{tap}"))
        x = add("Concat", slices, "taps", axis=1)
        weight = add("Transpose", [weight], "weight.taps", perm=[0, 2, 1, 3, 4])
    x = add("Transpose", [x], "frames", perm=[0, 2, 1, 3, 4])
    x = reshape(x, "pictures", batch * frames, taps * channels, height, width)
    weight = reshape(weight, "weight", outputs, taps * channels, *kernel)
    y = add("Conv", [x, weight, *bias], "convolved", pads=[*pads[1:3], *pads[4:]], strides=strides[1:])
    y = reshape(y, "sequence", batch, frames, outputs, *size)
    out.append(helper.make_node("Transpose", [y], [node.output[0]], name=node.name, perm=[0, 2, 1, 3, 4]))
    return out
