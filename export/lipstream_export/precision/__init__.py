"""Precision of a graph: the types in which its weights are stored and its products are computed.

fp32   everything in float32: for ONNX Runtime on a CPU, and the reference of the others
bf16   products, K/V and the codec in bfloat16; norms, modulation, RoPE, softmax statistics and the residual in float32
fp8    as bf16, but most of the DiT's linear layers multiply float8 (E4M3) numbers
"""

from .bfloat16 import to_bfloat16
from .calibration import Passes, record_passes
from .fp8 import FP8Linear, quantise
from .sensitivity import Sensitivity, measure_sensitivity
from .widen import widen, widen_bundle, widen_module

__all__ = [
    "FP8Linear",
    "Passes",
    "Sensitivity",
    "measure_sensitivity",
    "quantise",
    "record_passes",
    "to_bfloat16",
    "widen",
    "widen_bundle",
    "widen_module",
]
