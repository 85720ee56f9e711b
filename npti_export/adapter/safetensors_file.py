"""The safetensors container read without trusting it: every declared size is held against the bytes that are there.

The library's own reader would do for honest files; this one also refuses names given twice, unknown tensors and dtypes
before any array is made, says what is wrong in the terms of the file, and need not copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npti_export.errors import NptiError

MAX_HEADER_BYTES = 1_000_000
"""Two kilobytes are usual; JSON may take 20 times its size in memory, so that a header is bounded on its own."""
MAX_DIMENSION = 2**31 - 1

_CODES: dict[str, str] = {"int16": "I16", "int32": "I32", "float32": "F32"}
"""numpy's names of the dtypes that an adapter holds, and the container's."""


def read_safetensors(
    data: bytes, dtypes: Mapping[str, type[np.generic]], where: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Metadata and tensors of a safetensors file; the tensors are read-only views of ``data``.

    Args:
        data: The whole file.
        dtypes: The tensors that the file may hold, and the dtype of each.
        where: The file, for messages.

    Returns:
        The header's metadata and the tensors by name, of one dimension, two or none.

    Raises:
        NptiError: With what was found and what was expected.

    >>> from safetensors.numpy import save
    >>> read_safetensors(save({"x": np.arange(3, dtype=np.int16)}), {"x": np.int16}, "a file")
    ({}, {'x': array([0, 1, 2], dtype=int16)})
    """
    header, start = _header(data, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise NptiError(f"{where}: the header's metadata are no JSON object.")
    arrays, pieces = {}, []
    for name, described in header.items():
        if name not in dtypes:
            raise NptiError(f"{where}: unknown tensor {_shown(name)}.")
        arrays[name], piece = _array(data, start, described, np.dtype(dtypes[name]), f"{where}: the tensor {name!r}")
        pieces.append(piece)
    end = 0
    for begin, stop in sorted(pieces):
        if begin != end:
            raise NptiError(f"{where}: its tensors overlap or leave a gap at byte {end} of the data.")
        end = stop
    if start + end != len(data):
        raise NptiError(f"{where} has {len(data)} bytes, expected {start + end} by its header.")
    return metadata, arrays


def strict_json(text: str) -> Any:
    """JSON without a name that stands twice in an object, and without NaN or infinities.

    Raises:
        ValueError: If it is anything else; RecursionError if it is nested too deep.

    >>> strict_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ...
    ValueError: the name 'a' stands there twice
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"the name {_shown(name)} stands there twice")
            found[name] = value
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def _header(data: bytes, where: str) -> tuple[dict[str, Any], int]:
    """The header's JSON object, and where the tensors' bytes begin."""
    if len(data) < 8:
        raise NptiError(f"{where} is no safetensors file: it has {len(data)} bytes.")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise NptiError(
            f"{where} is no adapter's safetensors file: it declares a header of {length} bytes; it has {len(data)} "
            f"bytes, and a header at most {MAX_HEADER_BYTES}."
        )
    try:
        header = strict_json(data[8 : 8 + length].decode())
    except (ValueError, RecursionError) as error:
        reason = "; ".join(str(error).split("\n"))[:200]
        raise NptiError(f"{where} is no safetensors file: its header is no JSON ({reason}).") from None
    if not isinstance(header, dict) or data[8:9] != b"{":
        raise NptiError(f"{where} is no safetensors file: its header is no JSON object.")
    return header, 8 + length


def _array(
    data: bytes, start: int, described: Any, dtype: np.dtype[Any], where: str
) -> tuple[NDArray[Any], tuple[int, int]]:
    """A tensor as its entry in the header describes it, and where it begins and ends within the tensors' bytes."""
    match described:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, stop], **rest} if not rest:
            pass
        case _:
            raise NptiError(f"{where} is not described by dtype, shape and two data_offsets.")
    if code != _CODES[dtype.name]:
        raise NptiError(f"{where} is {_shown(code)}, expected {_CODES[dtype.name]!r}.")
    if len(shape) > 2 or not all(type(size) is int and 0 <= size <= MAX_DIMENSION for size in shape):
        raise NptiError(f"{where} has the shape {_shown(shape)}, expected one or two sizes of at most {MAX_DIMENSION}.")
    count = int(np.prod(shape, dtype=object))
    whole = type(begin) is int and type(stop) is int and 0 <= begin <= stop <= len(data) - start
    if not whole or stop - begin != count * dtype.itemsize:
        raise NptiError(
            f"{where} of shape {shape} is said to lie in bytes {_shown(begin)} to {_shown(stop)} of "
            f"{len(data) - start}, expected {count * dtype.itemsize} bytes within these."
        )
    flat = np.frombuffer(memoryview(data)[start + begin : start + stop], dtype=dtype.newbyteorder("<"))
    return np.require(flat.reshape(shape), dtype=dtype, requirements="A"), (begin, stop)


def _shown(value: object) -> str:
    """A value from the file as part of a sentence: on one line, and not long."""
    return repr(value)[:80]
