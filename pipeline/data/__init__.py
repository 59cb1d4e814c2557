"""Problems by name, made-up problems, traces for SFT, and what overlaps."""

from pipeline.data.arithmetic_problems import make_arithmetic_problems
from pipeline.data.problems import (
    GENERATED,
    ReadReport,
    available_splits,
    load_problems,
    read_problems,
)

__all__ = [
    "GENERATED",
    "ReadReport",
    "available_splits",
    "load_problems",
    "make_arithmetic_problems",
    "read_problems",
]
