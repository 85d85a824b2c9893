"""Lower the ring in the graph `denoiser` for TensorRT.

function  the node KVRingWrite is replaced by its body, in standard ONNX: rings of dynamic length, one profile for each
          number of attended frames. Every pass copies the whole rings to other memory.
native    KVCacheUpdate writes the chunk into the ring in place, RotaryEmbedding rotates K and Q, and the attention
reads
          a given number of keys. TensorRT's cache is [1, H, window * T, D]: heads first, of fixed length, and bound as
          input and output at one address. ONNX has no operator for that, so the graph is rewritten.
plugin    as native, but one node, LipStream's own plugin, does what comes between the linear layers of K and V and the
          ring: K's RMSNorm, rotation, heads first, and the write in place. If every layer's attention quantises K and
          V, the rings hold their codes in FP8, rounded once when they are written, not in every pass that reads them.

How many keys the last two attend to is either the attention's own run-time length, or a mask over the whole window.

All are derived from the bundle's graph; ONNX Runtime runs that graph with the function.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import onnx
from lipstream.bundle import Geometry
from lipstream.bundle.golden import first_chunks
from lipstream.errors import LipStreamInternalError
from lipstream.plugin import NAME, NAMESPACE, VERSION
from onnx import ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper

Lowering = Literal["native", "plugin", "function"]
ATTENDED = "attended"
"""Input of a graph that writes its ring in place: int64 [1], number of attended frames."""
Attends = Literal["length", "mask"]
_PAIR = ("QuantizeLinear", "DequantizeLinear")
TRT = "trt"
"""Domain of the operators that TensorRT's parser adds to ONNX's."""


def lower_ring(model: ModelProto, geometry: Geometry, lowering: Lowering, attends: Attends = "length") -> ModelProto:
    """Return `model` (its weights may be external) as TensorRT takes it; without the node KVRingWrite, unchanged.

    Args:
        attends: how a ring that is written in place is limited to the attended frames.
    """
    if not any(node.op_type == "KVRingWrite" for node in model.graph.node):
        return model
    if lowering == "function":
        # The parser inlines functions, too, but names their nodes alike in every layer.
        return inliner.inline_local_functions(model)
    lowered = ModelProto()
    lowered.CopyFrom(model)
    (_Plugin if lowering == "plugin" else _Native)(lowered, geometry, attends).run()
    return lowered


def ring_scales(model: ModelProto, geometry: Geometry, lowering: Lowering) -> list[tuple[float, float]] | None:
    """The scales of K and V in each layer's ring, as `lower_ring` lowers a bundle's graph; None for 16-bit rings."""
    return _Plugin(model, geometry, "length").scales if lowering == "plugin" else None


class _Native:
    def __init__(self, model: ModelProto, geometry: Geometry, attends: Attends) -> None:
        self.model, self.graph, self.g, self.attends = model, model.graph, geometry, attends
        self.producer: dict[str, NodeProto] = {name: node for node in self.graph.node for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.types = {value.name: value.type.tensor_type.elem_type for value in self.graph.input}
        self.heads = (1, geometry.chunk_frames * geometry.tokens, geometry.num_heads, geometry.head_dim)
        self.new: list[NodeProto] = []

    def run(self) -> None:
        """Lower each ring node; then remove unused nodes and sort the graph."""
        writes = [node for node in self.graph.node if node.op_type == "KVRingWrite"]
        g = self.g
        self._constant("native.tokens", [g.tokens])
        self._constant("native.heads", self.heads)
        self._constant("native.table", (1, self.heads[1], g.head_dim // 2))
        self._constant("native.grid", (g.chunk_frames, g.tokens, 1))
        self._constant("native.zero", [0])
        self._constant("native.one", [1])
        scale = 1 / math.sqrt(g.head_dim)
        for name, value in (("native.scale", scale), ("native.softmax", 1 / 448)):
            self.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        slot, cos_t, sin_t, cos_s, sin_s = writes[0].input[4:9]
        self._node("Mul", [slot, "native.tokens"], "native.index")
        self._node("Mul", [ATTENDED, "native.tokens"], "native.length")
        if self.attends == "mask":
            self._constant("native.keys", range(g.window * g.tokens), (1, 1, 1, g.window * g.tokens))
            self._node("Less", ["native.keys", "native.length"], "native.mask")
        self.mask, self.length = ("native.mask", "") if self.attends == "mask" else ("", "native.length")
        self._table(cos_t, cos_s, "native.cos")
        self._table(sin_t, sin_s, "native.sin")
        for layer, node in enumerate(writes):
            self._layer(layer, node)
        self.graph.input.append(helper.make_tensor_value_info(ATTENDED, TensorProto.INT64, [1]))
        self._shapes()
        self._prune(writes)
        self._sort()
        del self.model.functions[:]
        self.model.opset_import.append(helper.make_opsetid(TRT, 1))

    def _layer(self, layer: int, write: NodeProto) -> None:
        """Lower one ring node and the attention that reads it."""
        dtype = self.types[write.input[0]]
        attention = self._attention(self.consumers[write.output[0]][0])
        self._write(layer, write, dtype)
        q, out = self._rotated(attention.input[0]), attention.output[0]
        attention.output[0] = f"native.gone.{layer}"
        pairs = self._pairs(attention)
        if not pairs:
            self._node("Mul", [q, "native.scale"], f"native.q.{layer}.scaled")
            self._cast(f"native.q.{layer}.scaled", f"native.q.{layer}", dtype)
            inputs = [f"native.q.{layer}", *write.output, self.mask, "", self.length]
            self._node("TRT_Attention", inputs, out, domain=TRT)
            return
        self._cast(q, f"native.q.{layer}", dtype)  # TRT_QuantizedAttention scales itself
        q_pair, *ring_pairs = pairs
        inputs = [self._pair(f"native.q.{layer}", *q_pair)]
        inputs += [self._ring_pair(ring, *pair) for ring, pair in zip(write.output, ring_pairs, strict=True)]
        # Softmax gives at most 1, so 1/448 lets E4M3 reach it.
        inputs += [self.mask, "native.softmax", "", self.length]
        self._node("TRT_QuantizedAttention", inputs, out, domain=TRT, normalization_quantize_to_type="fp8")

    def _write(self, layer: int, write: NodeProto, dtype: int) -> None:
        """Write the chunk's K, rotated, and V into the rings."""
        k_ring, v_ring, k, v = write.input[:4]
        self._turned(k, f"native.k.{layer}", dtype)
        self._heads_first(v, f"native.v.{layer}.float")
        self._cast(f"native.v.{layer}.float", f"native.v.{layer}", dtype)
        for ring, new, out in zip((k_ring, v_ring), "kv", write.output, strict=True):
            self._node("TRT_KVCacheUpdate", [ring, f"native.{new}.{layer}", "native.index"], out, domain=TRT)

    def _pairs(self, attention: NodeProto) -> list[tuple[str, str]]:
        """Scale and zero point of an attention's Q, K and V; empty unless all three are quantised."""
        pairs = [pair for name in attention.input[:3] if (pair := self._quantised(name))]
        return pairs if len(pairs) == 3 else []

    def _quantised(self, x: str) -> tuple[str, str] | None:
        """Scale and zero point of the quantise-dequantise pair before an attention's input, or None."""
        node = self.producer.get(x)
        while node is not None and node.op_type == "Transpose":
            node = self.producer.get(node.input[0])
        return (node.input[1], node.input[2]) if node is not None and node.op_type == "DequantizeLinear" else None

    def _pair(self, x: str, scale: str, zero: str) -> str:
        self._node("QuantizeLinear", [x, scale, zero], f"{x}.e4m3")
        self._node("DequantizeLinear", [f"{x}.e4m3", scale, zero], f"{x}.rounded")
        return f"{x}.rounded"

    def _ring_pair(self, ring: str, scale: str, zero: str) -> str:
        """The numbers of a ring as its attention takes them."""
        return self._pair(ring, scale, zero)

    def _attention(self, node: NodeProto) -> NodeProto:
        """The attention that reads `node`, skipping nodes that only change the shape."""
        while node.op_type != "Attention":
            if node.op_type not in ("Reshape", "Unsqueeze", "Transpose", "Cast", *_PAIR):
                raise LipStreamInternalError(f"{node.op_type} {node.name} stands between the ring and its attention")
            (node,) = self.consumers[node.output[0]]
        return node

    def _rotated(self, q: str) -> str:
        """Rotated Q, float32 [1, H, n, D], that the graph rounds into `q`, the attention's first input."""
        while (node := self.producer[q]).op_type != "RotaryEmbedding":
            if node.op_type not in ("Transpose", "Cast", *_PAIR):
                raise LipStreamInternalError(f"{node.op_type} {node.name} stands between Q's rotation and attention")
            q = node.input[0]
        return q

    def _turned(self, x: str, out: str, dtype: int) -> None:
        """Rotated in float32, rounded once."""
        self._heads_first(x, f"{out}.heads")
        self._cast(f"{out}.heads", f"{out}.float", TensorProto.FLOAT)
        self._node("RotaryEmbedding", [f"{out}.float", "native.cos", "native.sin"], f"{out}.turned", interleaved=1)
        self._cast(f"{out}.turned", out, dtype)

    def _heads_first(self, x: str, out: str) -> None:
        """Tokens [.., H, D] or [.., H D] -> [1, H, tokens, D]."""
        self._node("Reshape", [x, "native.heads"], f"{out}.rows")
        self._node("Transpose", [f"{out}.rows"], out, perm=[0, 2, 1, 3])

    def _table(self, temporal: str, spatial: str, out: str) -> None:
        """Angles of frames [c, pairs] and of a frame's tokens [T, pairs] -> of all tokens [1, c T, D/2]."""
        for axes, table, part in (("native.one", temporal, "t"), ("native.zero", spatial, "s")):
            self._node("Unsqueeze", [table, axes], f"{out}.{part}")
            self._node("Expand", [f"{out}.{part}", "native.grid"], f"{out}.{part}.all")
        self._node("Concat", [f"{out}.t.all", f"{out}.s.all"], f"{out}.rows", axis=-1)
        self._node("Reshape", [f"{out}.rows", "native.table"], out)

    def _shapes(self) -> None:
        """Replace the rings in the graph's inputs and outputs."""
        g = self.g
        for value in [*self.graph.input, *self.graph.output]:
            if value.name.startswith(("k.", "v.", "k_out.", "v_out.")):
                shape = [1, g.num_heads, g.window * g.tokens, g.head_dim]
                dtype = self._ring_type(value.type.tensor_type.elem_type)
                value.CopyFrom(helper.make_tensor_value_info(value.name, dtype, shape))
        del self.graph.value_info[:]  # some describe removed tensors

    def _ring_type(self, dtype: int) -> int:
        """The type of a ring that is of `dtype` in the bundle's graph."""
        return dtype

    def _prune(self, writes: list[NodeProto]) -> None:
        """Add the new nodes, and keep only those old nodes whose outputs are read."""
        nodes = [node for node in self.graph.node if node not in writes] + self.new
        wanted = {value.name for value in self.graph.output}
        makers = {name: node for node in nodes for name in node.output}
        kept: dict[int, NodeProto] = {}
        while wanted:
            maker = makers.get(wanted.pop())
            if maker is not None and id(maker) not in kept:
                kept[id(maker)] = maker
                wanted |= {*maker.input} - {""}
        self.nodes = [node for node in nodes if id(node) in kept]

    def _sort(self) -> None:
        """Sort the nodes topologically, otherwise in the old order."""
        made = {name for node in self.nodes for name in node.output}
        done: set[str] = set()
        order: list[NodeProto] = []
        waiting = self.nodes
        while waiting:
            ready = [node for node in waiting if all(name in done or name not in made for name in node.input)]
            if not ready:
                raise LipStreamInternalError("the lowered graph has a cycle")
            for node in ready:
                order.append(node)
                done |= {*node.output}
            waiting = [node for node in waiting if node.output[0] not in done]
        del self.graph.node[:]
        self.graph.node.extend(order)

    def _constant(self, name: str, values: Any, shape: tuple[int, ...] | None = None) -> None:
        self.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, shape or [len(values)], values))

    def _cast(self, x: str, out: str, dtype: int) -> None:
        self._node("Cast", [x], out, to=dtype)

    def _node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> None:
        self.new.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))


class _Plugin(_Native):
    def __init__(self, model: ModelProto, geometry: Geometry, attends: Attends) -> None:
        super().__init__(model, geometry, attends)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        writes = [node for node in self.graph.node if node.op_type == "KVRingWrite"]
        pairs = [self._pairs(self._attention(self.consumers[node.output[0]][0])) for node in writes]
        self.scales = (
            [(self._number(k), self._number(v)) for _, (k, _), (v, _) in pairs] if pairs and all(pairs) else None
        )

    def _number(self, name: str) -> float:
        """The value of a scalar, as float32."""
        return float(numpy_helper.to_array(self.constants[name]).astype(np.float32))

    def _write(self, layer: int, write: NodeProto, dtype: int) -> None:
        k_ring, v_ring, k, v = write.input[:4]
        rows, weight, eps = self._normalised(self._source(k))
        scales = [f"native.{kind}_scale.{layer}" for kind in "kv"] if self.scales else []
        for name, scale in zip(scales, self.scales[layer] if self.scales else (), strict=True):
            self.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [scale]))
        node = helper.make_node(
            NAME,
            [k_ring, v_ring, rows, self._source(v), weight, *write.input[4:9], *scales],
            [*write.output],
            name=f"{NAME}.{layer}",
            domain=NAMESPACE,
            eps=eps,
            plugin_version=VERSION,
            plugin_namespace=NAMESPACE,
        )
        self.new.append(node)

    def _ring_pair(self, ring: str, scale: str, zero: str) -> str:
        if not self.scales:
            return super()._ring_pair(ring, scale, zero)
        self._node("DequantizeLinear", [ring, scale, zero], f"{ring}.rounded")
        return f"{ring}.rounded"

    def _ring_type(self, dtype: int) -> int:
        return TensorProto.FLOAT8E4M3FN if self.scales else dtype

    def _source(self, x: str) -> str:
        """The tensor [1, n, H D] that `x` is another shape of."""
        while self.producer[x].op_type in ("Reshape", "Squeeze", "Unsqueeze"):
            x = self.producer[x].input[0]
        return x

    def _normalised(self, x: str) -> tuple[str, str, float]:
        """What the RMSNorm that gives `x` normalises, as the linear layer gives it; its weight; its eps."""
        norm = self.producer[x]
        if norm.op_type == "RMSNormalization":  # in float32, where nothing is rounded between norm and weight
            (eps,) = (attribute.f for attribute in norm.attribute if attribute.name == "epsilon")
            return norm.input[0], norm.input[1], eps
        x, weight = self._expect(x, "Mul").input
        x = self._skip_casts(x)
        x, inverse = self._expect(x, "Mul").input
        root = self._expect(self._expect(inverse, "Reciprocal").input[0], "Sqrt")
        mean, eps = self._expect(root.input[0], "Add").input
        self._expect(self._expect(mean, "ReduceMean").input[0], "Pow")
        return self._skip_casts(x), weight, float(numpy_helper.to_array(self.constants[eps]))

    def _expect(self, x: str, kind: str) -> NodeProto:
        if x not in self.producer or self.producer[x].op_type != kind:
            raise LipStreamInternalError(f"{x} is not the {kind} of K's RMSNorm")
        return self.producer[x]

    def _skip_casts(self, x: str) -> str:
        while x in self.producer and self.producer[x].op_type == "Cast":
            x = self.producer[x].input[0]
        return x


def phases(geometry: Geometry) -> list[int]:
    """The numbers of attended frames that occur in a stream."""
    return [*first_chunks(geometry)]


def load_graph(path: Any) -> ModelProto:
    """Load a graph of a bundle without its external weights."""
    return onnx.load(path, load_external_data=False)
