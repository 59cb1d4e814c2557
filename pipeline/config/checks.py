"""Types of configuration fields with their ranges, and the checks of their values.

TrlParser rejects unknown keys but not wrong values: `n: 2.7` passes an int field and `mode: zzz` a
Literal. Each configuration therefore calls `check_types(self)` in `__post_init__`. A range is part
of the type of its field, `Annotated[float, Bounds(ge=0, le=1)]` or one of the names below; only
rules between several fields are code.
"""

import types
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import (
    TYPE_CHECKING,
    Annotated,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Bounds:
    """Range of a number: `ge` and `le` include their bound, `gt` and `lt` do not.

    `why` is the reason of the rule, for the error message. NaN lies in no range.

    >>> str(Bounds(ge=1)), str(Bounds(gt=0)), str(Bounds(ge=0, lt=1))
    ('at least 1', 'above 0', 'in [0, 1)')
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    why: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        low, high = (b if a is None else a for a, b in ((self.ge, self.gt), (self.le, self.lt)))
        if high is None:
            return f"above {low:g}" if self.ge is None else f"at least {low:g}"
        left, right = "(" if self.ge is None else "[", ")" if self.le is None else "]"
        return f"in {left}{low:g}, {high:g}{right}"


@dataclass(frozen=True)
class NonEmpty:
    """A text that has to be given."""

    def __contains__(self, value: str) -> bool:
        return bool(value.strip())

    def __str__(self) -> str:
        return "required"


Required = Annotated[str, NonEmpty()]
PositiveInt = Annotated[int, Bounds(ge=1)]
NonNegativeInt = Annotated[int, Bounds(ge=0)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
UnitInterval = Annotated[float, Bounds(ge=0, le=1)]
Votes = Annotated[int, Bounds(ge=2, why="one sample is no vote")]


def check_types(config: "DataclassInstance") -> None:
    """Raise ValueError for a field whose value does not fit its annotation, bounds included.

    `1e-5` in quotes, or as YAML reads it, becomes the float it stands for.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        kinds, rules = _kinds_and_rules(hints[field.name])
        value = getattr(config, field.name)
        if kinds is not None and not _fits(value, kinds):
            number = _as_number(value, kinds)
            if number is None:
                allowed = " or ".join(_name(kind) for kind in kinds)
                raise ValueError(f"{field.name}={value!r} must be {allowed}{_default(field)}")
            setattr(config, field.name, value := number)
        for rule in rules:
            if value is not None and value not in rule:
                raise ValueError(_broken(rule, field, value, optional=type(None) in (kinds or ())))


def field_rules(cls: type) -> dict[str, str]:
    """{field: rule} of the fields with one, such as {"lam": "in [0, 1]", "n": ">= 1"}."""
    hints = get_type_hints(cls, include_extras=True)
    rules = {name: _kinds_and_rules(hint)[1] for name, hint in hints.items()}
    texts = {name: str(found[0]) for name, found in rules.items() if found}
    return {n: t.replace("at least", ">=").replace("above", ">") for n, t in texts.items()}


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_defaults(
    config: "DataclassInstance", names: Collection[str], rule: str, *, others: Collection = ()
) -> None:
    """Raise ValueError where a field of `names` has another value than its default and `others`;
    `rule` follows its name and value in the message."""
    for field in fields(config):
        if field.name in names:
            value = getattr(config, field.name)
            require(value == field.default or value in others, f"{field.name}={value!r} {rule}")


def require_effect(
    configs: "Sequence[DataclassInstance]", flag: str, *, set_later: Collection[str] = ()
) -> None:
    """Raise ValueError for a flag whose field has no effect with the other values.

    The rules stand in the classes: `ONLY_WITH = {"strategy=beam/mcts": ("branches",)}` says that
    `branches` has an effect only with these strategies, `"value_coef"` alone as a key that it must
    be above 0. A rule about a field of `set_later`, which may still change, is left out.
    """
    name = flag.removeprefix("--").replace("-", "_")
    values = {f.name: getattr(config, f.name) for config in configs for f in fields(config)}
    classes = [cls for config in configs for cls in type(config).__mro__]
    for condition, names in [i for c in classes for i in vars(c).get("ONLY_WITH", {}).items()]:
        field, _, wanted = condition.partition("=")
        if name not in names or field not in values or field in set_later:
            continue
        value = _as_written(values[field])
        needed = f"={wanted.replace('/', ' or ')}" if wanted else " above 0"
        require(
            value in wanted.split("/") if wanted else bool(values[field]),
            f"{flag} does nothing with {field}={value}; give {field}{needed}, or leave {flag} out",
        )


def check_divides(part: int, whole: int, rule: str) -> None:
    """Raise ValueError unless part divides whole; `rule` says which is which.

    >>> check_divides(3, 8, "num_minibatches=3 must divide the rollout of 8 sequences")
    Traceback (most recent call last):
    ValueError: num_minibatches=3 must divide the rollout of 8 sequences; 8 / 3 = 2.67
    """
    require(
        part > 0 and whole % part == 0,
        f"{rule}; {whole} / {part} = {whole / part:.2f}" if part > 0 else rule,
    )


def _kinds_and_rules(hint: object) -> tuple[tuple | None, list[Bounds | NonEmpty]]:
    """The simple types that an annotation allows, None where it is not simple, and its rules."""
    kinds, rules = [], []
    for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(option) is Annotated:
            option, *extras = get_args(option)
            rules += [extra for extra in extras if isinstance(extra, Bounds | NonEmpty)]
        kinds.append(option)
    simple = (int, float, bool, str, type(None))
    ok = all(kind in simple or get_origin(kind) is Literal for kind in kinds)
    return (tuple(kinds), rules) if ok else (None, [])


def _broken(rule: Bounds | NonEmpty, field: Field, value: object, *, optional: bool) -> str:
    """The error message for a value outside the rule of its field."""
    if isinstance(rule, NonEmpty):
        return f"--{field.name} is missing: pass --{field.name} or set it in the --config"
    verb = "lie" if str(rule).startswith("in ") else "be"
    why = f": {rule.why}" if rule.why else ""
    return f"{field.name}={value} must {verb} {rule}{', or null' * optional}{why}{_default(field)}"


def _default(field: Field) -> str:
    """The end of an error message: the default of a field, where it has one."""
    return "" if field.default in (MISSING, None) else f"; the default is {field.default}"


def _fits(value: object, kinds: tuple) -> bool:
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return True
        elif kind in (int, float):
            if isinstance(value, (int, kind)) and not isinstance(value, bool):
                return True
        elif isinstance(value, kind):
            return True
    return False


def _as_number(value: object, kinds: tuple) -> float | None:
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _as_written(value: object) -> str:
    """A value as a YAML file has it; that of an enumeration by its value.

    >>> _as_written(True), _as_written(None), _as_written("keep")
    ('true', 'null', 'keep')
    """
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))


def _name(kind: object) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    names: dict[object, str] = {
        type(None): "null",
        float: "a number",
        int: "a whole number",
        bool: "true or false",
    }
    return names.get(kind, "text")
