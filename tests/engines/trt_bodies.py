"""NVIDIA's operators and LipStream's plugin as documented, written in standard ONNX, for a batch of one."""

from __future__ import annotations

import onnx
from onnx import ModelProto, TensorProto, inliner


def with_bodies(model: ModelProto) -> ModelProto:
    """A lowered graph of standard operators only, with the bodies inlined."""
    attentions = ("TRT_Attention", "TRT_QuantizedAttention")
    masked = any(node.op_type in attentions and node.input[3] for node in model.graph.node)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    codes = types.get("k.0") == TensorProto.FLOAT8E4M3FN
    model.functions.extend(_bodies("mask" if masked else "length", codes))
    return inliner.inline_local_functions(model)


def _bodies(attends: str, codes: bool) -> list[onnx.FunctionProto]:
    """KVCacheUpdate, attention with key lengths or with a mask, and the plugin with a ring of numbers or of codes."""
    window = "keys = Slice (k, zero, length, axis) values = Slice (v, zero, length, axis)"
    seen = "seen = Identity (logits)"
    if attends == "mask":
        window = "keys = Identity (k) values = Identity (v)"
        seen = "never = Constant <value_float = -1e30> () least = CastLike (never, logits) "
        seen += "seen = Where (mask, logits, least)"
    update = onnx.parser.parse_function("""
        <domain: "trt", opset_import: ["": 23]>
        TRT_KVCacheUpdate (cache, update, index) => (out) {
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [1]> ()
            last = Constant <value_ints = [9223372036854775807]> ()
            axis = Constant <value_ints = [2]> ()
            length = Shape <start = 2, end = 3> (update)
            end = Add (index, length)
            before = Slice (cache, zero, index, axis)
            after = Slice (cache, end, last, axis)
            out = Concat <axis = 2> (before, update, after)
        }""")
    attention = """
        <domain: "trt", opset_import: ["": 23]>
        TRT_Attention (q, k, v, mask, query_lengths, length) => (out) {
            zero = Constant <value_ints = [0]> ()
            axis = Constant <value_ints = [2]> ()
            WINDOW
            turned = Transpose <perm = [0, 1, 3, 2]> (keys)
            logits = MatMul (q, turned)
            SEEN
            weights = Softmax <axis = -1> (seen)
            out = MatMul (weights, values)
        }"""
    quantised = """
        <domain: "trt", opset_import: ["": 23]>
        TRT_QuantizedAttention (q, k, v, mask, scale, query_lengths, length) => (out) {
            zero = Constant <value_ints = [0]> ()
            axis = Constant <value_ints = [2]> ()
            WINDOW
            turned = Transpose <perm = [0, 1, 3, 2]> (keys)
            size = Shape <start = -1> (q)
            wide = CastLike (size, q)
            root = Sqrt (wide)
            product = MatMul (q, turned)
            logits = Div (product, root)
            SEEN
            exact = Softmax <axis = -1> (seen)
            small = QuantizeLinear <output_dtype = 17> (exact, scale)
            weights = DequantizeLinear (small, scale)
            out = MatMul (weights, values)
        }"""
    # With numbers of type N: float32(k) / rms, rounded to N, times the weight, rotated, rounded to N; heads first.
    # Codes are those of QuantizeLinear; ONNX Runtime has Slice and Concat of float32, which holds them exactly.
    scales, old, new, out = "", "KIND_old = Identity (KIND_ring)", "KIND_new = Identity (KIND_own)", "Identity"
    if codes:
        scales, old, out = ", k_scale, v_scale", "KIND_old = Cast <to = 1> (KIND_ring)", "Cast <to = 17>"
        new = "KIND_wide = Cast <to = 1> (KIND_own) "
        new += "KIND_code = QuantizeLinear <output_dtype = 17> (KIND_wide, KIND_scale) "
        new += "KIND_new = Cast <to = 1> (KIND_code)"
    write = f"""
            {old}
            {new}
            KIND_before = Slice (KIND_old, zero, index, axis)
            KIND_after = Slice (KIND_old, end, far, axis)
            KIND_all = Concat <axis = 2> (KIND_before, KIND_new, KIND_after)
            KIND_out = {out} (KIND_all)"""
    plugin = """
        <domain: "lipstream", opset_import: ["": 23]>
        KVRingWrite <eps> (k_ring, v_ring, k, v, weight, slot, cos_t, sin_t, cos_s, sin_s SCALES) => (k_out, v_out) {
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [1]> ()
            two = Constant <value_float = 2.0> ()
            last = Constant <value_ints = [-1]> ()
            far = Constant <value_ints = [9223372036854775807]> ()
            axis = Constant <value_ints = [2]> ()
            eps_of = Constant <value_float: float = @eps> ()
            x = Cast <to = 1> (k)
            squares = Pow (x, two)
            mean = ReduceMean <keepdims = 1> (squares, last)
            shifted = Add (mean, eps_of)
            root = Sqrt (shifted)
            inverse = Reciprocal (root)
            unit = Mul (x, inverse)
            rounded = CastLike (unit, k)
            wide = Cast <to = 1> (rounded)
            normal = Mul (wide, weight)
            heads = Shape <start = 1, end = 2> (k_ring)
            dim = Shape <start = 3, end = 4> (k_ring)
            frames = Shape <start = 0, end = 1> (cos_t)
            tokens = Shape <start = 0, end = 1> (cos_s)
            grid = Concat <axis = 0> (frames, tokens, one)
            rows = Concat <axis = 0> (one, last, heads, dim)
            k_rows = Reshape (normal, rows)
            k_heads = Transpose <perm = [0, 2, 1, 3]> (k_rows)
            v_rows = Reshape (v, rows)
            v_own = Transpose <perm = [0, 2, 1, 3]> (v_rows)
            cos_t_one = Unsqueeze (cos_t, one)
            sin_t_one = Unsqueeze (sin_t, one)
            cos_s_one = Unsqueeze (cos_s, zero)
            sin_s_one = Unsqueeze (sin_s, zero)
            cos_t_all = Expand (cos_t_one, grid)
            sin_t_all = Expand (sin_t_one, grid)
            cos_s_all = Expand (cos_s_one, grid)
            sin_s_all = Expand (sin_s_one, grid)
            cos_all = Concat <axis = -1> (cos_t_all, cos_s_all)
            sin_all = Concat <axis = -1> (sin_t_all, sin_s_all)
            pairs = Shape <start = 2, end = 3> (cos_all)
            table = Concat <axis = 0> (one, last, pairs)
            cos = Reshape (cos_all, table)
            sin = Reshape (sin_all, table)
            turned = RotaryEmbedding <interleaved = 1> (k_heads, cos, sin)
            k_own = CastLike (turned, k)
            index = Mul (slot, tokens)
            length = Shape <start = 2, end = 3> (k_own)
            end = Add (index, length)
            WRITES
        }"""
    plugin = plugin.replace("SCALES", scales).replace("WRITES", "".join(write.replace("KIND", kind) for kind in "kv"))
    attentions = [text.replace("WINDOW", window).replace("SEEN", seen) for text in (attention, quantised)]
    return [update, *map(onnx.parser.parse_function, [*attentions, plugin])]
