"""Floats of 16 and 32 bits in tables, read as the decimal numbers that they were written from.

The float32 of 0.1 is 0.10000000149011612 as a float64; as an expected answer it must be 0.1.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipeline.data.converters import Row


def with_decimals(rows: Iterable[Row], schema: pa.Schema) -> Iterator[Row]:
    """The rows of a table, with short floats as decimals; also inside lists and records."""
    kinds = {field.name: field.type for field in schema if _has_short_floats(field.type)}
    for row in rows:
        found = {name: decimals(row[name], kind) for name, kind in kinds.items() if name in row}
        yield {**row, **found} if found else row


def decimals(value: object, kind: pa.DataType) -> object:
    """A value of a type, with floats of 16 and 32 bits as the shortest decimal of their precision.

    >>> decimals([0.10000000149011612, None], pa.list_(pa.float32()))
    [0.1, None]
    """
    if isinstance(value, float) and _is_short(kind):
        return float(str(np.float16(value) if pa.types.is_float16(kind) else np.float32(value)))
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {name: decimals(part, kind.field(name).type) for name, part in value.items()}
    if isinstance(value, list) and _is_list(kind):
        return [decimals(part, kind.value_type) for part in value]
    return value


def _has_short_floats(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_short_floats(kind.field(i).type) for i in range(kind.num_fields))
    return _has_short_floats(kind.value_type) if _is_list(kind) else _is_short(kind)


def _is_short(kind: pa.DataType) -> bool:
    return pa.types.is_float16(kind) or pa.types.is_float32(kind)


def _is_list(kind: pa.DataType) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in is_list)
