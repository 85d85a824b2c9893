"""NVIDIA's operators as documented, written in standard ONNX, for a batch of one."""

from __future__ import annotations

import onnx


def bodies() -> list[onnx.FunctionProto]:
    """KVCacheUpdate, and attention with key lengths."""
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
    attention = onnx.parser.parse_function("""
        <domain: "trt", opset_import: ["": 23]>
        TRT_Attention (q, k, v, mask, query_lengths, length) => (out) {
            zero = Constant <value_ints = [0]> ()
            axis = Constant <value_ints = [2]> ()
            keys = Slice (k, zero, length, axis)
            values = Slice (v, zero, length, axis)
            turned = Transpose <perm = [0, 1, 3, 2]> (keys)
            logits = MatMul (q, turned)
            weights = Softmax <axis = -1> (logits)
            out = MatMul (weights, values)
        }""")
    quantised = onnx.parser.parse_function("""
        <domain: "trt", opset_import: ["": 23]>
        TRT_QuantizedAttention (q, k, v, mask, scale, query_lengths, length) => (out) {
            zero = Constant <value_ints = [0]> ()
            axis = Constant <value_ints = [2]> ()
            keys = Slice (k, zero, length, axis)
            values = Slice (v, zero, length, axis)
            turned = Transpose <perm = [0, 1, 3, 2]> (keys)
            size = Shape <start = -1> (q)
            wide = CastLike (size, q)
            root = Sqrt (wide)
            product = MatMul (q, turned)
            logits = Div (product, root)
            exact = Softmax <axis = -1> (logits)
            small = QuantizeLinear <output_dtype = 17> (exact, scale)
            weights = DequantizeLinear (small, scale)
            out = MatMul (weights, values)
        }""")
    return [update, attention, quantised]
