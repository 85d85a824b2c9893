"""The nodes, attributes and small constants of an ONNX file, as `sizes` needs them. Without the package `onnx`.

What a reader of protocol buffers could understand in two ways (a value given twice) is refused, so that ONNX Runtime
cannot see another graph than is checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .onnx_header import fields, message, varint

OPSETS = range(18, 27)
"""Versions of ONNX's operators whose sizes `sizes` knows."""
_SMALL = 4096  # elements of a constant whose values are read: those that sizes can depend on
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 11: "<f8", 12: "<u4", 13: "<u8"}
"""TensorProto.DataType of the types whose values are read."""
_LISTS = {4: "<f4", 5: "<i4", 7: "<i8", 10: "<f8", 11: "<u8"}  # float_data, int32_data, ...
_FLOAT, _INT, _STRING, _TENSOR, _FLOATS, _INTS = 1, 2, 3, 4, 6, 7  # AttributeProto.AttributeType


@dataclass(frozen=True)
class Constant:
    """A tensor in the file. `value` is None if it is large, in another file, or of a type that no size depends on."""

    shape: tuple[int, ...]
    value: NDArray[Any] | None


@dataclass(frozen=True)
class Node:
    """One node. `attributes`: int, float, str, lists of these, or Constant."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class Function:
    """A function of the model; called by a node whose operator is its name."""

    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


@dataclass
class Graph:
    """Nodes in their order, constants by name, functions by "domain:name"."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)


def read_graph(path: Path) -> Graph:
    """Read the graph of an ONNX file. Raises ValueError if it has parts that no student needs; OSError."""
    graph = Graph()
    for number, value in fields(memoryview(path.read_bytes())):
        if number == 7:
            for inner, part in fields(message(value)):
                if inner == 1:
                    graph.nodes.append(_node(message(part)))
                elif inner == 5:
                    name, constant = _constant(message(part))
                    if name in graph.constants:
                        raise ValueError(f"two constants are named {name}")
                    graph.constants[name] = constant
                elif inner == 15:
                    raise ValueError("it has sparse weights")
        elif number == 8:
            _check_opset(message(value))
        elif number == 25:
            name, function = _function(message(value))
            if name in graph.functions:
                raise ValueError(f"two functions are named {name}")
            graph.functions[name] = function
    return graph


def _function(data: memoryview) -> tuple[str, Function]:
    function, name, domain = Function(), "", ""
    for number, value in fields(data):
        if number == 1:
            name = _text(value)
        elif number == 10:
            domain = _text(value)
        elif number == 4:
            function.inputs.append(_text(value))
        elif number == 5:
            function.outputs.append(_text(value))
        elif number == 7:
            function.nodes.append(_node(message(value)))
        elif number == 9:
            _check_opset(message(value))
    return _operator(domain, name), function


def _check_opset(data: memoryview) -> None:
    domain, version = "", 0
    for number, value in fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            version = _integer(value)
    if domain in ("", "ai.onnx") and version not in OPSETS:
        raise ValueError(f"it has opset {version}, not {OPSETS[0]} to {OPSETS[-1]}")


def _node(data: memoryview) -> Node:
    operator = domain = ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Any] = {}
    for number, value in fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 8 and _text(value):
            raise ValueError(f"{operator} is overloaded")
        elif number == 5:
            name, content = _attribute(message(value))
            if name in attributes:
                raise ValueError(f"{operator} has two attributes {name}")
            attributes[name] = content
    return Node(_operator(domain, operator), tuple(inputs), tuple(outputs), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    name, kind = "", 0
    number_, real, text = 0, 0.0, ""
    tensors: list[Constant] = []
    integers: list[int] = []
    reals: list[float] = []
    for number, value in fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            real = np.frombuffer(message(value), "<f4").item()
        elif number == 3:
            number_ = _integer(value)
        elif number == 4:
            text = bytes(message(value)).decode(errors="replace")
        elif number == 5:
            tensors.append(_constant(message(value))[1])
        elif number == 7:
            reals += np.frombuffer(message(value), "<f4").tolist()
        elif number == 8:
            integers += _integers(value)
        elif number == 20:
            kind = _integer(value)
        elif number == 21:
            raise ValueError(f"the attribute {name} refers to one of a function")
    if len(tensors) > 1:
        raise ValueError(f"the attribute {name} has two values")
    tensor = tensors[0] if tensors else None
    kinds = {_FLOAT: real, _INT: number_, _STRING: text, _TENSOR: tensor, _FLOATS: reals, _INTS: integers}
    return name, kinds.get(kind)


def _constant(data: memoryview) -> tuple[str, Constant]:
    name, dtype = "", 0
    shape: list[int] = []
    raw: memoryview | None = None
    external = False
    listed: dict[int, list[NDArray[Any]]] = {}
    for number, value in fields(data):
        if number == 1:
            shape += _integers(value)
        elif number == 2:
            dtype = _integer(value)
        elif number == 8:
            name = _text(value)
        elif number == 9:
            raw = message(value)
        elif number in (13, 14):
            external = True
        elif number in _LISTS and math.prod(shape) <= _SMALL:
            packed = number in (4, 10)
            items = np.frombuffer(message(value), _LISTS[number]) if packed else _integers(value)
            listed.setdefault(number, []).append(np.asarray(items).astype(_LISTS[number]))
    if any(size < 0 for size in shape):
        raise ValueError(f"the constant {name} has shape {shape}")
    if (raw is not None) + len(listed) > 1:
        raise ValueError(f"the constant {name} has two values")
    elements = math.prod(shape)
    if external or elements > _SMALL or dtype not in _DTYPES:
        return name, Constant(tuple(shape), None)
    if raw is not None:
        value_ = np.frombuffer(raw, _DTYPES[dtype])
    else:
        value_ = np.concatenate(next(iter(listed.values()))) if listed else np.zeros(0)
    if value_.size != elements:
        raise ValueError(f"the constant {name} has {value_.size} values, not {elements}")
    return name, Constant(tuple(shape), value_.astype(_DTYPES[dtype]).reshape(shape))


def _operator(domain: str, name: str) -> str:
    return f"{domain}:{name}" if domain not in ("", "ai.onnx") else name


def _text(value: int | memoryview) -> str:
    return bytes(message(value)).decode()


def _integer(value: int | memoryview) -> int:
    """A signed number of 64 bits."""
    if not isinstance(value, int):
        raise ValueError("a message where a number is expected")
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _integers(value: int | memoryview) -> Iterable[int]:
    """Numbers of a list, which is written as one field or as a field for each number."""
    if isinstance(value, int):
        return [_integer(value)]
    found, position = [], 0
    while position < len(value):
        number, position = varint(value, position)
        found.append(_integer(number))
    return found
