"""Data sets by name, generated problems, SFT examples and decontamination."""

from pipeline.data.arithmetic_problems import make_arithmetic_problems
from pipeline.data.problems import (
    GENERATED,
    ReadReport,
    available_splits,
    is_own_data,
    load_problems,
    read_problems,
)

__all__ = [
    "GENERATED",
    "ReadReport",
    "available_splits",
    "is_own_data",
    "load_problems",
    "make_arithmetic_problems",
    "read_problems",
]
