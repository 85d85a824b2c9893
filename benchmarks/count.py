"""Count operations, bytes and kernel launches of a graph from its nodes.

A product (MatMul, Gemm, Conv, Attention) is one kernel: it reads its operands and writes its result once. Everything
between two products is assumed to be fused into as few kernels as possible: connected nodes at the same depth (number
of products on the longest path to them) are one kernel, and only its inputs and outputs are read and written. Reshapes
and transposes are free; weights computed from other weights are computed once, when a graph is loaded. So bytes and
launches are those of a very good runtime, and the time computed from them is a lower bound.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import onnx_ir
import sympy

Ring = Literal["native", "function"]
"""How the ring is written: in place, or by the function's body, which copies it."""

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"}
_RING = "KVRingWrite"
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Transpose", "Expand", "DequantizeLinear"}
_PARTS = {"Slice", "Gather", "Split"}  # read only as many bytes as their outputs have
_TYPES = {"FLOAT8E4M3FN": "fp8", "BFLOAT16": "bf16", "FLOAT": "fp32"}


@dataclass(frozen=True)
class Kernel:
    """One launch. operations: multiplications and additions of products, else 0. number: type of the operands."""

    name: str
    operations: int
    number: str
    bytes: int


@dataclass(frozen=True)
class Cost:
    """The cost of a graph.

    Attributes:
        kernels: in an order in which they can run. weights: bytes of the weights. state: bytes of the tensors that are
            inputs of the next call (K, V, memories). workspace: peak bytes of intermediate tensors.
    """

    kernels: tuple[Kernel, ...]
    weights: int
    state: int
    workspace: int

    def grown(self, larger: Cost, steps: int) -> Cost:
        """This cost plus `steps` times the difference to `larger`, which differs by whole kernels."""
        added = Counter(larger.kernels)
        added.subtract(Counter(self.kernels))
        assert min(added.values()) >= 0, "the larger graph lacks kernels of this one"
        kernels = self.kernels + tuple(added.elements()) * steps
        return Cost(
            kernels,
            self.weights + steps * (larger.weights - self.weights),
            self.state + steps * (larger.state - self.state),
            self.workspace + steps * (larger.workspace - self.workspace),
        )

    @property
    def operations(self) -> int:
        return sum(kernel.operations for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)


def count(model: onnx_ir.Model, frames: int, ring: Ring = "native") -> Cost:
    """Count a graph whose dynamic sizes are those for `frames` attended latent frames."""
    return _Counter(model.graph, frames, ring).cost()


class _Counter:
    def __init__(self, graph: onnx_ir.Graph, frames: int, ring: Ring) -> None:
        self._graph, self._frames, self._ring = graph, frames, ring
        self._root: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self._constant = {*graph.initializers.values()}
        self._inputs = {*graph.inputs}
        self._level: dict[onnx_ir.Value, int] = {}

    def cost(self) -> Cost:
        nodes = [node for node in self._graph if not self._folded(node)]
        groups = self._groups(nodes)
        makers = {self.root(out): group for group, members in enumerate(groups) for n in members for out in n.outputs}
        takers: defaultdict[onnx_ir.Value, set[int]] = defaultdict(set)
        for group, members in enumerate(groups):
            for node in members:
                for value in node.inputs:
                    if value is not None and makers.get(self.root(value)) != group:
                        takers[self.root(value)].add(group)
        last = len(groups)
        for value in self._graph.outputs:
            takers[self.root(value)].add(last)
        kernels = tuple(self._kernel(members, group, makers, takers) for group, members in enumerate(groups))
        alive = [0] * (last + 1)
        for value, group in makers.items():
            if takers[value]:
                for i in range(group, max(takers[value]) + 1):
                    alive[i] += self.bytes(value)
        state = [v for v in self._graph.inputs if (v.name or "").startswith(("memory.", "k.", "v."))]
        weights = sum(self.bytes(v) for v in self._needed_constants(nodes))
        return Cost(kernels, weights, sum(map(self.bytes, state)), max(alive))

    def root(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Return the tensor that a value is a view of."""
        return self._root.get(value, value)

    def bytes(self, value: onnx_ir.Value) -> int:
        assert value.dtype is not None, value.name
        return math.ceil(math.prod(self.shape(value)) * value.dtype.itemsize)

    def shape(self, value: onnx_ir.Value) -> tuple[int, ...]:
        if value.shape is None:
            raise ValueError(f"no shape of {value.name}")
        return tuple(self._size(size) for size in value.shape)

    def _size(self, size: int | onnx_ir.SymbolicDim) -> int:
        if isinstance(size, int):
            return size
        return _evaluated(str(size.value), self._frames)

    def _folded(self, node: onnx_ir.Node) -> bool:
        """Whether a node costs nothing when the graph runs, because its outputs are views or constants."""
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in ("Constant", "Shape") or all(value in self._constant for value in inputs):
            self._constant.update(node.outputs)
            if node.op_type == "DequantizeLinear":
                self._root[node.outputs[0]] = self.root(inputs[0])  # the product reads the quantised numbers
            return True
        if node.op_type == "Split" and inputs[0] in self._inputs:
            return True  # its parts are read where they lie
        if node.op_type in _VIEWS:
            self._root[node.outputs[0]] = self.root(inputs[0])
            return True
        if node.op_type == _RING and self._ring == "native":
            for out, value in zip(node.outputs, node.inputs[:2], strict=True):
                assert value is not None
                self._root[out] = self.root(value)
        return False

    def _groups(self, nodes: list[onnx_ir.Node]) -> list[list[onnx_ir.Node]]:
        """The nodes of each kernel."""
        parent: dict[onnx_ir.Node, onnx_ir.Node] = {}

        def find(node: onnx_ir.Node) -> onnx_ir.Node:
            while parent.setdefault(node, node) is not node:
                node = parent[node] = parent[parent[node]]
            return node

        made: dict[onnx_ir.Value, onnx_ir.Node] = {}
        level: dict[onnx_ir.Node, int] = {}
        alone = PRODUCTS | {_RING}
        for node in nodes:
            roots = [self.root(value) for value in node.inputs if value is not None]
            level[node] = max((self._level.get(value, 0) for value in roots), default=0)
            for value in roots:
                before = made.get(value)
                fits = before is not None and before.op_type not in alone and level[before] == level[node]
                if fits and node.op_type not in alone:
                    assert before is not None
                    parent[find(node)] = find(before)
            for out in node.outputs:
                after = level[node] + (node.op_type in alone)
                self._level[self.root(out)] = max(after, self._level.get(self.root(out), 0))
                made[self.root(out)] = node
        members: defaultdict[onnx_ir.Node, list[onnx_ir.Node]] = defaultdict(list)
        for node in nodes:
            members[find(node)].append(node)
        return sorted(members.values(), key=lambda group: (level[group[0]], group[0].op_type in alone))

    def _kernel(
        self,
        members: list[onnx_ir.Node],
        group: int,
        makers: dict[onnx_ir.Value, int],
        takers: dict[onnx_ir.Value, set[int]],
    ) -> Kernel:
        node = members[0]
        if node.op_type == _RING and self._ring == "native":
            chunk = [value for value in node.inputs[2:4] if value is not None]
            ring = node.inputs[0]
            assert ring is not None
            assert ring.dtype is not None
            written = sum(math.prod(self.shape(value)) * int(ring.dtype.itemsize) for value in chunk)
            return Kernel(node.op_type, 0, "", sum(map(self.bytes, chunk)) + written)
        read: dict[onnx_ir.Value, int] = {}
        for member in members:
            most = sum(map(self.bytes, member.outputs)) if member.op_type in _PARTS else None
            for value in member.inputs:
                if value is None or makers.get(self.root(value)) == group:
                    continue
                size = self.bytes(self.root(value))
                root = self.root(value)
                read[root] = max(read.get(root, 0), size if most is None else min(size, most))
        outputs = {self.root(out) for member in members for out in member.outputs}
        moved = sum(read.values()) + sum(self.bytes(out) for out in outputs if takers[out])
        if node.op_type not in PRODUCTS:
            return Kernel(node.op_type if len(members) == 1 else f"{len(members)} fused", 0, "", moved)
        return Kernel(node.op_type, self._operations(node), self._number(node), moved)

    def _operations(self, node: onnx_ir.Node) -> int:
        a, b = (self.shape(value) for value in node.inputs[:2] if value is not None)
        out = math.prod(self.shape(node.outputs[0]))
        match node.op_type:
            case "Attention":  # [B, H, N, D] and [B, H, M, D]
                return 4 * math.prod(a) * b[-2]
            case "Conv":
                return 2 * out * math.prod(b[1:])
            case "ConvTranspose":
                return 2 * math.prod(a) * math.prod(b[1:])
            case "Gemm":
                turned = node.attributes.get("transA")
                return 2 * out * a[0 if turned is not None and turned.as_int() else 1]
            case _:
                return 2 * out * a[-1]

    def _number(self, node: onnx_ir.Node) -> str:
        """The type that a product's operands have: the widest of them."""
        found = {self.root(value).dtype for value in node.inputs[:2] if value is not None}
        names = {_TYPES[dtype.name] for dtype in found if dtype is not None}
        return max(names, key=("fp8", "bf16", "fp32").index)

    def _needed_constants(self, nodes: Iterable[onnx_ir.Node]) -> set[onnx_ir.Value]:
        return {self.root(v) for node in nodes for v in node.inputs if v is not None and v in self._constant}


@cache
def _evaluated(size: str, frames: int) -> int:
    """The value of a dynamic size, such as "64*attended_frames", for `frames`."""
    expression = sympy.sympify(size)
    return int(expression.subs(dict.fromkeys(expression.free_symbols, frames)))
