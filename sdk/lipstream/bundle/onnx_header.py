"""Header of an ONNX file: its inputs, its outputs, and the names of its external weight files. Pruning of a graph.

Read from the protocol buffer directly (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), so that a bundle can be
checked before it is run, without the package `onnx`. Sub-graphs and functions are searched for weights, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Shape = tuple[int | str | None, ...]
FLOAT, INT64, BFLOAT16 = 1, 7, 16
"""TensorProto.DataType of float32, int64 and bfloat16."""

_MOST_DEEP = 32


@dataclass(frozen=True)
class Tensor:
    """One input or output: `dtype` is ONNX's number; a size is a number, the name of a variable size, or None."""

    dtype: int
    shape: Shape


@dataclass(frozen=True)
class OnnxHeader:
    """Inputs and outputs by name, the names of the external files, and the operators, as "Add" or "domain:Name"."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    external: frozenset[str]
    operators: frozenset[str]


def read_header(path: Path) -> OnnxHeader:
    """Read the header of an ONNX file. Raises ValueError if it is not one; OSError."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    external: set[str] = set()
    operators: set[str] = set()
    found = False
    for field, value in fields(memoryview(path.read_bytes())):
        if field == 7:  # graph
            found = True
            for number, part in fields(message(value)):
                if number == 11:
                    inputs.update([_value_info(message(part))])
                elif number == 12:
                    outputs.update([_value_info(message(part))])
            _graph(message(value), external, operators, 0)
        elif field == 25:  # function
            for number, part in fields(message(value)):
                if number == 7:
                    _node(message(part), external, operators, 0)
    if not found:
        raise ValueError("it holds no graph")
    return OnnxHeader(inputs, outputs, frozenset(external), frozenset(operators))


def without_output(model: bytes, output: str) -> bytes:
    """An ONNX model without one of its outputs, and without the nodes that only this one needs.

    Nodes with sub-graphs are not supported. Raises ValueError if it is no model.
    """
    parts = _parts(memoryview(model))
    return b"".join(_field(7, _pruned(message(value), output)) if n == 7 else bytes(raw) for n, value, raw in parts)


def _pruned(graph: memoryview, output: str) -> bytes:
    kept: list[bytes] = []
    needed: set[str] = set()
    for number, value, raw in reversed([*_parts(graph)]):  # outputs come after the nodes, which are in order
        if number == 12:
            name, _ = _value_info(message(value))
            if name == output:
                continue
            needed.add(name)
        elif number == 1:
            names = [(n, bytes(message(x)).decode()) for n, x in fields(message(value)) if n in (1, 2)]
            if not needed & {name for n, name in names if n == 2}:
                continue
            needed |= {name for n, name in names if n == 1}
        kept.append(bytes(raw))
    return b"".join(reversed(kept))


def _field(number: int, data: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(data)) + data


def _number(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _graph(data: memoryview, external: set[str], operators: set[str], depth: int) -> None:
    if depth > _MOST_DEEP:
        raise ValueError("graphs are nested too deeply")
    for number, value in fields(data):
        if number == 1:
            _node(message(value), external, operators, depth)
        elif number == 5:
            _tensor(message(value), external)
        elif number == 15:  # sparse initializer: its values and indices are tensors
            for inner, part in fields(message(value)):
                if inner in (1, 2):
                    _tensor(message(part), external)


def _node(data: memoryview, external: set[str], operators: set[str], depth: int) -> None:
    name = domain = ""
    for number, attribute in fields(data):
        if number == 4:
            name = bytes(message(attribute)).decode()
        elif number == 7:
            domain = bytes(message(attribute)).decode()
        if number != 5:
            continue
        for inner, value in fields(message(attribute)):
            if inner in (5, 10):  # t, tensors
                _tensor(message(value), external)
            elif inner in (6, 11):  # g, graphs
                _graph(message(value), external, operators, depth + 1)
    operators.add(f"{domain}:{name}" if domain not in ("", "ai.onnx") else name)


def _tensor(data: memoryview, external: set[str]) -> None:
    for number, entry in fields(data):
        if number == 13:
            pair = {inner: bytes(message(text)).decode() for inner, text in fields(message(entry))}
            if pair.get(1) == "location":
                external.add(pair.get(2, ""))


def _value_info(data: memoryview) -> tuple[str, Tensor]:
    name, dtype, shape = "", 0, []
    for number, value in fields(data):
        if number == 1:
            name = bytes(message(value)).decode()
        elif number == 2:
            for kind, tensor in fields(message(value)):
                if kind != 1:
                    continue
                for inner, part in fields(message(tensor)):
                    if inner == 1 and isinstance(part, int):
                        dtype = part
                    elif inner == 2:
                        shape = [_size(message(size)) for field, size in fields(message(part)) if field == 1]
    return name, Tensor(dtype, tuple(shape))


def _size(data: memoryview) -> int | str | None:
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            return value
        if number == 2:
            return bytes(message(value)).decode()
    return None


def message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Fields of a protocol buffer message: (number, varint or bytes)."""
    return ((number, value) for number, value, _ in _parts(data))


def _parts(data: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Fields of a protocol buffer message: (number, varint or bytes, the field as it is written)."""
    position = 0
    while position < len(data):
        begin = position
        key, position = varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = varint(data, position)
            yield key >> 3, value, data[begin:position]
            continue
        if kind == 2:
            length, position = varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if position + length > len(data):
            raise ValueError("it ends in the middle of a field")
        end = position + length
        yield key >> 3, data[position:end], data[begin:end]
        position = end


def varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number that does not end")
