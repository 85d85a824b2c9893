"""The size of every tensor that a graph computes, from the sizes of its inputs: a bound of its memory before it is run.

Shapes are computed node by node, with the values of small tensors of integers, since some operators take a shape as an
input (Expand, Tile, Pad, Range, Resize). A size that depends on anything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx_graph import Constant, Function, Graph, Node

Sizes = tuple[int, ...]
BYTES = 4
"""Of an element: graphs compute in float32."""
_SMALL = 4096  # elements of a tensor whose values are computed
_MOST_WORK = 1_000_000  # nodes and what they have; those of functions each time that one is called
_MOST_AXES, _LARGEST = 16, 1 << 62
_MOST_DEEP = 32


@dataclass(frozen=True)
class _Tensor:
    """`value`: if it is known, for integers. `fixed`: it depends on no input, so a runtime may keep it for good."""

    shape: Sizes
    value: NDArray[Any] | None = None
    fixed: bool = False

    @property
    def bytes(self) -> int:
        return BYTES * math.prod(self.shape)


class _Call:
    """A node with the tensors that it takes."""

    def __init__(self, node: Node, tensors: Mapping[str, _Tensor]) -> None:
        self.node = node
        self.inputs: list[_Tensor | None] = []
        for name in node.inputs:
            if name and name not in tensors:
                raise ValueError(f"{node.operator} takes {name}, which is not computed before it")
            self.inputs.append(tensors[name] if name else None)

    def work(self) -> int:
        """How much there is to look at."""
        node = self.node
        long = (x for x in node.attributes.values() if isinstance(x, list | str))
        values = (x.value.size for x in self.inputs if x is not None and x.value is not None)
        return 1 + len(node.inputs) + len(node.outputs) + len(node.attributes) + sum(map(len, long)) + sum(values)

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> _Tensor:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise ValueError(f"{self.node.operator} has no input {index}")
        return found

    def shape(self, index: int = 0) -> Sizes:
        return self.input(index).shape

    def value(self, index: int) -> NDArray[Any]:
        found = self.input(index).value
        if found is None:
            raise ValueError(
                f"the size of {self.node.outputs[0]}, by {self.node.operator}, depends on what is computed"
            )
        return found

    def integers(self, index: int, default: Sequence[int] | None = None) -> list[int]:
        """Values of an input that is a list of integers; `default` if it is not given."""
        if default is not None and not self.has(index):
            return [*default]
        return [int(number) for number in self.value(index).reshape(-1)]

    def get(self, name: str, default: Any) -> Any:
        """An attribute, of the type of `default`."""
        found = self.node.attributes.get(name, default)
        if not isinstance(found, type(default)):
            raise ValueError(f"{self.node.operator} has {name} = {found!r}")
        return found

    def axis(self, default: int, rank: int) -> int:
        return _axis(self.get("axis", default), rank)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} of {rank}")
    return axis % max(rank, 1)


def _axes(axes: Iterable[int], rank: int) -> set[int]:
    return {_axis(axis, rank) for axis in axes}


def largest(graph: Graph, inputs: Mapping[str, Sizes], outputs: Mapping[str, Sizes]) -> tuple[int, str]:
    """Bytes of all tensors that are held at once at most, inputs, outputs and weights excluded.

    Nodes are taken to run in the order of the file. What depends on no input is held for good, since a runtime may
    compute it once.

    Args:
        inputs, outputs: their shapes. Those of outputs that are not given are not checked.

    Returns:
        Bytes, and the name of the tensor that brings them about.

    Raises:
        ValueError: a size cannot be told before the graph runs, or an output has another shape.
    """
    return _Walk(graph).run(graph.nodes, inputs, outputs)


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self._functions, self._left, self._kept = graph.functions, _MOST_WORK, 0
        if shadowing := sorted(graph.functions.keys() & RULES.keys()):
            raise ValueError(f"it has a function {shadowing[0]}, which is the name of an operator")
        self._constants = {name: _of(constant) for name, constant in graph.constants.items()}

    def run(self, nodes: Sequence[Node], inputs: Mapping[str, Sizes], outputs: Mapping[str, Sizes]) -> tuple[int, str]:
        tensors = dict(self._constants)
        for name, shape in inputs.items():
            if name in tensors:
                raise ValueError(f"{name} is an input and a constant")
            tensors[name] = _Tensor(shape)
        last = {name: number for number, node in enumerate(nodes) for name in node.inputs}
        held, most, by = 0, 0, ""
        for number, node in enumerate(nodes):
            made, scratch = self._computed(node, tensors, 0)
            new = 0
            for name, tensor in zip(node.outputs, made, strict=True):
                if not name:
                    continue
                if name in tensors:
                    raise ValueError(f"{name} is computed twice")
                tensors[name] = tensor
                new += 0 if name in outputs else _passing(tensor)
            held += new
            if held + scratch + self._kept > most:
                most, by = held + scratch + self._kept, f"{node.outputs[0]}, by {node.operator}"
            dead = {name for name in (*node.inputs, *node.outputs) if name and last.get(name, -1) <= number}
            for name in dead - {*inputs, *outputs} - self._constants.keys():
                held -= _passing(tensors[name])
        for name, shape in outputs.items():
            if name in tensors and tensors[name].shape != shape:
                raise ValueError(f"the output {name} is {list(tensors[name].shape)}, not {list(shape)}")
        return most, by

    def _computed(self, node: Node, tensors: Mapping[str, _Tensor], depth: int) -> tuple[list[_Tensor], int]:
        """The outputs of a node, and bytes that it needs besides."""
        call = _Call(node, tensors)
        self._left -= call.work()
        if self._left < 0 or depth > _MOST_DEEP:
            raise ValueError("it has too many nodes, or functions that are nested too deeply")
        if node.operator in self._functions:
            return self._called(call, self._functions[node.operator], depth)
        if node.operator not in RULES:
            raise ValueError(f"the size of what {node.operator} computes is not known")
        fixed = all(tensor is None or tensor.fixed for tensor in call.inputs)
        shapes = RULES[node.operator](call)
        shapes += [shapes[0]] * (len(node.outputs) - len(shapes))  # such as the mean beside a norm: not larger
        for shape in shapes:
            if len(shape) > _MOST_AXES or not all(0 <= size < _LARGEST for size in (*shape, math.prod(shape))):
                raise ValueError(f"{node.operator} gives {[*shape][:_MOST_AXES]}")
        value = _value(call, shapes[0])
        made = [_Tensor(shape, None if index else value, fixed) for index, shape in enumerate(shapes)]
        self._kept += sum(tensor.bytes for tensor in made if tensor.fixed)
        return made[: len(node.outputs)], BYTES * (_SCRATCH[node.operator](call) if node.operator in _SCRATCH else 0)

    def _called(self, call: _Call, function: Function, depth: int) -> tuple[list[_Tensor], int]:
        """As `_computed`, of a function; all that it computes is taken to be held until it ends."""
        tensors = {name: x for name, x in zip(function.inputs, call.inputs, strict=False) if x is not None}
        held = scratch = 0
        for node in function.nodes:
            made, more = self._computed(node, tensors, depth + 1)
            if twice := [name for name in node.outputs if name and name in tensors]:
                raise ValueError(f"{twice} of {call.node.operator} is computed twice")
            tensors.update(zip(node.outputs, made, strict=True))
            held, scratch = held + sum(map(_passing, made)), max(scratch, more)
        if missing := {*function.outputs} - tensors.keys():
            raise ValueError(f"{call.node.operator} does not compute {sorted(missing)}")
        made = [tensors[name] for name in function.outputs[: len(call.node.outputs)]]
        return made, max(0, held + scratch - sum(map(_passing, made)))


def _passing(tensor: _Tensor) -> int:
    """Bytes that are freed after the last use."""
    return 0 if tensor.fixed else tensor.bytes


def _of(constant: Constant) -> _Tensor:
    return _Tensor(constant.shape, constant.value, fixed=True)


def _same(call: _Call) -> list[Sizes]:
    return [call.shape()]


def _broadcast(*shapes: Sizes) -> Sizes:
    rank = max(map(len, shapes), default=0)
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        others = {*sizes} - {1}
        if len(others) > 1:
            raise ValueError(f"shapes {shapes} do not fit each other")
        result.append(others.pop() if others else 1)
    return tuple(result)


def _elementwise(call: _Call) -> list[Sizes]:
    return [_broadcast(*(call.shape(index) for index in range(len(call.inputs))))]


def _product(a: Sizes, b: Sizes) -> Sizes:
    left, right = a if len(a) > 1 else (1, *a), b if len(b) > 1 else (*b, 1)
    if not a or not b or left[-1] != right[-2]:
        raise ValueError(f"products of {a} and {b}")
    return _broadcast(left[:-2], right[:-2]) + left[-2:-1] * (len(a) > 1) + right[-1:] * (len(b) > 1)


def _gemm(call: _Call) -> list[Sizes]:
    (a, b), (c, d) = call.shape(0), call.shape(1)
    return [(b if call.get("transA", 0) else a, c if call.get("transB", 0) else d)]


def _window(call: _Call, kernel: Sizes, channels: int) -> Sizes:
    """Output of a convolution or a pool."""
    batch, _, *sizes = call.shape()
    strides, dilations, begin, end = _steps(call, len(sizes))
    auto = call.get("auto_pad", "NOTSET")
    result = [batch, channels]
    for size, k, stride, dilation, before, after in zip(sizes, kernel, strides, dilations, begin, end, strict=True):
        if auto.startswith("SAME"):
            result.append(-(-size // stride))
            continue
        span = size - dilation * (k - 1) - 1 + (before + after) * (auto != "VALID")
        result.append((-(-span // stride) if call.get("ceil_mode", 0) else span // stride) + 1)
    return tuple(result)


def _steps(call: _Call, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and padding at the begin and at the end."""
    ones, pads = [1] * rank, call.get("pads", []) or [0] * (2 * rank)
    strides, dilations = call.get("strides", []) or ones, call.get("dilations", []) or ones
    if any(number < 1 for number in (*strides, *dilations)):
        raise ValueError(f"{call.node.operator} has strides {strides} and dilations {dilations}")
    return strides, dilations, pads[:rank], pads[rank:]


def _convolution(call: _Call) -> list[Sizes]:
    return [_window(call, call.shape(1)[2:], call.shape(1)[0])]


def _pool(call: _Call) -> list[Sizes]:
    return [_window(call, tuple(call.get("kernel_shape", [])), call.shape()[1])]


def _transposed_convolution(call: _Call) -> list[Sizes]:
    batch, _, *sizes = call.shape()
    _, channels, *kernel = call.shape(1)
    strides, dilations, begin, end = _steps(call, len(sizes))
    if call.get("output_shape", []) or call.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("a ConvTranspose that is not padded by numbers")
    more = call.get("output_padding", []) or [0] * len(sizes)
    result = [
        stride * (size - 1) + extra + dilation * (k - 1) + 1 - before - after
        for size, k, stride, dilation, before, after, extra in zip(
            sizes, kernel, strides, dilations, begin, end, more, strict=True
        )
    ]
    return [(batch, channels * call.get("group", 1), *result)]


def _attention_sizes(call: _Call) -> tuple[int, int, int, int, int, int]:
    """Batch, heads of the queries and of the keys, queries, keys, and size of a value."""
    q, k, v = (call.shape(index) for index in range(3))
    if len(q) == 4:
        (batch, heads, queries, _), (_, key_heads, keys, _), size = q, k, v[3]
    else:
        heads, key_heads = call.get("q_num_heads", 0), call.get("kv_num_heads", 0)
        (batch, queries, _), (_, keys, _) = q, k
        if heads < 1 or key_heads < 1:
            raise ValueError(f"an Attention with {heads} and {key_heads} heads")
        size = v[2] // key_heads
    return batch, heads, key_heads, queries, keys + (call.shape(4)[2] if call.has(4) else 0), size


def _attention(call: _Call) -> list[Sizes]:
    batch, heads, key_heads, queries, keys, size = _attention_sizes(call)
    four = len(call.shape()) == 4
    first = (batch, heads, queries, size) if four else (batch, queries, heads * size)
    width = call.shape(1)[3] if four else call.shape(1)[2] // key_heads
    return [first, (batch, key_heads, keys, width), (batch, key_heads, keys, size), (batch, heads, queries, keys)]


def _scores(call: _Call) -> int:
    batch, heads, _, queries, keys, _ = _attention_sizes(call)
    return batch * heads * queries * keys


def _einsum_sizes(call: _Call) -> tuple[dict[str, int], str]:
    equation = call.get("equation", "").replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "->" not in equation or "." in equation or len(terms) != len(call.inputs):
        raise ValueError(f"the Einsum {equation!r}")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, size in zip(term, call.shape(index), strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return sizes, right


def _einsum(call: _Call) -> list[Sizes]:
    sizes, right = _einsum_sizes(call)
    return [tuple(sizes[letter] for letter in right)]


def _reduced(call: _Call) -> list[Sizes]:
    shape = call.shape()
    axes = call.get("axes", []) or call.integers(1, [])
    if not axes and call.get("noop_with_empty_axes", 0):
        return [shape]
    gone = _axes(axes, len(shape)) if axes else {*range(len(shape))}
    kept = call.get("keepdims", 1)
    return [tuple(1 if axis in gone else size for axis, size in enumerate(shape) if kept or axis not in gone)]


def _reshape(call: _Call) -> list[Sizes]:
    shape, wanted = call.shape(), call.integers(1)
    if not call.get("allowzero", 0):
        wanted = [shape[axis] if size == 0 and axis < len(shape) else size for axis, size in enumerate(wanted)]
    rest = math.prod(size for size in wanted if size != -1)
    if wanted.count(-1) == 1 and rest:
        wanted[wanted.index(-1)] = math.prod(shape) // rest
    if math.prod(wanted) != math.prod(shape) or any(size < 0 for size in wanted):
        raise ValueError(f"{list(shape)} is not {wanted}")
    return [tuple(wanted)]


def _transpose(call: _Call) -> list[Sizes]:
    shape = call.shape()
    order = call.get("perm", []) or [*reversed(range(len(shape)))]
    if sorted(order) != [*range(len(shape))]:
        raise ValueError(f"a Transpose of {list(shape)} to {order}")
    return [tuple(shape[axis] for axis in order)]


def _concat(call: _Call) -> list[Sizes]:
    shapes = [call.shape(index) for index in range(len(call.inputs))]
    axis = call.axis(0, len(shapes[0]))
    if len({(*shape[:axis], *shape[axis + 1 :], len(shape)) for shape in shapes}) != 1:
        raise ValueError(f"a Concat of {shapes}")
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def _split(call: _Call) -> list[Sizes]:
    shape = call.shape()
    axis, parts = call.axis(0, len(shape)), len(call.node.outputs)
    each = -(-shape[axis] // parts)
    sizes = call.integers(1, [*[each] * (parts - 1), shape[axis] - each * (parts - 1)])
    if sum(sizes) != shape[axis] or len(sizes) != parts:
        raise ValueError(f"a Split of {list(shape)} into {sizes}")
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _parts(call: _Call) -> list[tuple[int, slice]]:
    """Of a Slice: axes and what is taken."""
    shape, starts, ends = call.shape(), call.integers(1), call.integers(2)
    axes, steps = call.integers(3, range(len(starts))), call.integers(4, [1] * len(starts))
    found = []
    for start, end, axis_, step in zip(starts, ends, axes, steps, strict=True):
        axis = _axis(axis_, len(shape))
        if not step:
            raise ValueError("a Slice with step 0")
        found.append((axis, slice(start, end, step)))
    return found


def _slice(call: _Call) -> list[Sizes]:
    sizes = [*call.shape()]
    for axis, part in _parts(call):
        sizes[axis] = len(range(*part.indices(sizes[axis])))
    return [tuple(sizes)]


def _squeeze(call: _Call) -> list[Sizes]:
    shape = call.shape()
    gone = _axes(call.integers(1, [axis for axis, size in enumerate(shape) if size == 1]), len(shape))
    if any(shape[axis] != 1 for axis in gone):
        raise ValueError(f"a Squeeze of {list(shape)}")
    return [tuple(size for axis, size in enumerate(shape) if axis not in gone)]


def _unsqueeze(call: _Call) -> list[Sizes]:
    axes = call.integers(1)
    rank = len(call.shape()) + len(axes)
    new, sizes = _axes(axes, rank), iter(call.shape())
    if len(new) != len(axes):
        raise ValueError(f"an Unsqueeze of axes {axes}")
    return [tuple(1 if axis in new else next(sizes) for axis in range(rank))]


def _flatten(call: _Call) -> list[Sizes]:
    shape, axis = call.shape(), call.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _dimensions(call: _Call) -> Sizes:
    rank = len(call.shape())
    return call.shape()[call.get("start", 0) : call.get("end", rank)]


def _gather(call: _Call) -> list[Sizes]:
    shape = call.shape()
    axis = call.axis(0, len(shape))
    return [shape[:axis] + call.shape(1) + shape[axis + 1 :]]


def _gather_nd(call: _Call) -> list[Sizes]:
    shape, (*places, depth) = call.shape(), call.shape(1)
    return [(*places, *shape[call.get("batch_dims", 0) + depth :])]


def _pad(call: _Call) -> list[Sizes]:
    sizes, pads = [*call.shape()], call.integers(1)
    axes = call.integers(3, range(len(sizes)))
    if len(pads) != 2 * len(axes):
        raise ValueError(f"a Pad of {sizes} by {pads}")
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        sizes[_axis(axis, len(sizes))] += before + after
    return [tuple(sizes)]


def _tile(call: _Call) -> list[Sizes]:
    return [tuple(size * times for size, times in zip(call.shape(), call.integers(1), strict=True))]


def _expand(call: _Call) -> list[Sizes]:
    return [_broadcast(call.shape(), tuple(call.integers(1)))]


def _range(call: _Call) -> list[Sizes]:
    start, limit, delta = (call.value(index).reshape(-1)[0].item() for index in range(3))
    count = (limit - start) / delta if delta else math.inf
    if not math.isfinite(count):
        raise ValueError(f"a Range from {start} to {limit} by {delta}")
    return [(max(0, math.ceil(count)),)]


def _resize(call: _Call) -> list[Sizes]:
    shape = call.shape()
    axes = call.get("axes", []) or [*range(len(shape))]
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("a Resize that keeps proportions")
    result = [*shape]
    if call.has(3):
        new = call.integers(3)
    else:
        scales = [float(scale) for scale in call.value(2).reshape(-1)]
        if not all(math.isfinite(scale) for scale in scales):
            raise ValueError(f"a Resize by {scales}")
        new = [math.floor(shape[_axis(axis, len(shape))] * scale) for axis, scale in zip(axes, scales, strict=True)]
    for axis, size in zip(axes, new, strict=True):
        result[_axis(axis, len(shape))] = size
    return [tuple(result)]


def _depth_to_space(call: _Call) -> list[Sizes]:
    (batch, channels, height, width), block = call.shape(), call.get("blocksize", 0)
    if block < 1 or channels % block**2:
        raise ValueError(f"a DepthToSpace of {channels} channels by {block}")
    return [(batch, channels // block**2, height * block, width * block)]


def _literal(call: _Call) -> Constant:
    (kind, found), *others = call.node.attributes.items() or [("", None)]
    if others or found is None or kind not in ("value", "value_int", "value_ints", "value_float", "value_floats"):
        raise ValueError(f"a Constant of {[*call.node.attributes]}")
    if isinstance(found, Constant):
        return found
    value = np.array(found, np.float32 if "float" in kind else np.int64)
    return Constant(value.shape, value)


def _norm_quantized(call: _Call) -> list[Sizes]:
    return [call.shape(), (), ()]


_SAME = (
    *(
        "Neg",
        "Sqrt",
        "Reciprocal",
        "Abs",
        "Exp",
        "Log",
        "Cos",
        "Sin",
        "Clip",
        "Not",
        "Relu",
        "LeakyRelu",
        "Gelu",
        "Erf",
    ),
    *("Tanh", "Sigmoid", "HardSigmoid", "Softmax", "Swish", "Round", "Floor", "RotaryEmbedding", "LayerNormalization"),
    *("RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization", "Identity", "ScatterND"),
    *("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"),
)
_BROADCAST = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or"),
    *("Where", "Min", "Max"),
)
RULES: dict[str, Callable[[_Call], list[Sizes]]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _elementwise),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduced),
    **dict.fromkeys(("MatMul", "MatMulInteger"), lambda call: [_product(call.shape(0), call.shape(1))]),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "QLinearMatMul": lambda call: [_product(call.shape(0), call.shape(3))],
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Attention": _attention,
    "Einsum": _einsum,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Shape": lambda call: [(len(_dimensions(call)),)],
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": lambda call: [call.shape(1)],
    "Pad": _pad,
    "Tile": _tile,
    "Expand": _expand,
    "Range": _range,
    "Resize": _resize,
    "DepthToSpace": _depth_to_space,
    "Constant": lambda call: [_literal(call).shape],
    "DynamicQuantizeLinear": _norm_quantized,
}
"""Operator -> the shapes of its outputs."""
_SCRATCH: dict[str, Callable[[_Call], int]] = {
    "Attention": _scores,
    "Einsum": lambda call: math.prod(_einsum_sizes(call)[0].values()),
}
"""Operator -> elements that it may compute besides its outputs."""


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.floor_divide,
    "Identity": lambda x: x,
}


def _value(call: _Call, shape: Sizes) -> NDArray[Any] | None:
    """The first output's value, if it is small, of integers, and known; of a Constant also if it is of real numbers."""
    operator = call.node.operator
    if operator == "Constant":
        return _literal(call).value
    if operator == "Shape":
        return np.array(_dimensions(call), np.int64)
    values = [tensor.value for tensor in call.inputs if tensor is not None]
    if math.prod(shape) > _SMALL or any(x is None or x.dtype.kind not in "iu" for x in values) or not values:
        return None
    known = [x for x in values if x is not None]
    if operator in _ARITHMETIC:
        if operator == "Div" and (np.any(known[0] < 0) or np.any(known[1] <= 0)):  # ONNX rounds towards zero
            return None
        with np.errstate(all="ignore"):  # integers that overflow do so in the graph, too
            result: NDArray[Any] = np.asarray(_ARITHMETIC[operator](*known))
        return result
    if operator in ("Reshape", "Squeeze", "Unsqueeze"):
        return known[0].reshape(shape)
    if operator == "Concat":
        return np.concatenate(known, call.axis(0, known[0].ndim))
    if operator == "Gather":
        axis = call.axis(0, known[0].ndim)
        if np.any(np.abs(known[1] + 0.5) > known[0].shape[axis]):
            return None
        return np.take(known[0], known[1], axis)
    if operator == "Slice":
        parts = dict(_parts(call))
        return known[0][tuple(parts.get(axis, slice(None)) for axis in range(known[0].ndim))]
    if operator == "Range":
        first, _, step = (int(x.reshape(-1)[0]) for x in known)
        return first + step * np.arange(shape[0], dtype=known[0].dtype)
    return None
