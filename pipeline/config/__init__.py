"""Configurations as dataclasses whose values are checked on construction."""

from pipeline.config.checks import (
    Bounds,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Required,
    UnitInterval,
    Votes,
    check_divides,
    check_types,
    field_rules,
    require,
    require_defaults,
)
from pipeline.config.stage_configs import (
    Attention,
    DataConfig,
    ModelConfig,
    OwnDataConfig,
    PromptConfig,
    RewardConfig,
    StageConfig,
)
from pipeline.config.weights import parse_mixture, parse_weights

__all__ = [
    "Attention",
    "Bounds",
    "DataConfig",
    "ModelConfig",
    "NonEmpty",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OwnDataConfig",
    "PositiveFloat",
    "PositiveInt",
    "PromptConfig",
    "Required",
    "RewardConfig",
    "StageConfig",
    "UnitInterval",
    "Votes",
    "check_divides",
    "check_types",
    "field_rules",
    "parse_mixture",
    "parse_weights",
    "require",
    "require_defaults",
]
