"""Names with weights in one text: `gsm8k=2,math=1`."""

import math
from collections import Counter
from collections.abc import Sequence

# Rewards that are logged beside those of reward functions.
OTHER_REWARDS = ("steps", "overlong")


def parse_mixture(text: str) -> dict[str, float | None]:
    """{name: weight} of a mixture of data sets; every weight is None if the text gives none.

    "gsm8k=2,math=1" is two thirds of GSM8K and one third of MATH, "gsm8k,math" all of both.

    Raises:
        ValueError: a name is empty or occurs twice, a weight is no number above 0, or only some
            names have one.

    >>> parse_mixture("gsm8k=2, math=1"), parse_mixture("gsm8k,math")
    ({'gsm8k': 2.0, 'math': 1.0}, {'gsm8k': None, 'math': None})
    """
    parsed: dict[str, float | None] = {}
    for item in text.split(","):
        name, equals, weight = (part.strip() for part in item.rpartition("="))
        name, weight = (name, weight) if equals else (weight, name)
        if not name:
            raise ValueError(
                f"dataset={text!r} has an empty name; write 'gsm8k' or 'gsm8k=2,math=1'"
            )
        if name in parsed:
            raise ValueError(f"dataset={text!r} names {name} twice; name it once")
        try:
            parsed[name] = float(weight) if equals else None
        except ValueError:
            raise ValueError(
                f"dataset={text!r} must look like 'gsm8k' or 'gsm8k=2,math=1'; {item!r} does not"
            ) from None
    weighted = [weight for weight in parsed.values() if weight is not None]
    if weighted and (len(weighted) < len(parsed) or not all(0 < w < 1e9 for w in weighted)):
        raise ValueError(f"dataset={text!r}: give every name a weight above 0, or none of them")
    return parsed


def parse_weights(field: str, text: str, *, example: str) -> dict[str, float]:
    """{name: number} of a text like 'a=1,b=2'; `example` is for the error message.

    Raises:
        ValueError: an item has another form or a number that is not finite, or a name comes twice.

    >>> parse_weights("rewards", "correctness=1,steps=0.1", example="a=1")
    {'correctness': 1.0, 'steps': 0.1}
    """
    parsed: dict[str, float] = {}
    for item in text.split(","):
        name, written = (part.strip() for part in item.rpartition("=")[::2])
        try:
            number = float(name and written)
        except ValueError:
            raise ValueError(
                f"{field}={text!r} must look like {example!r}; {item!r} does not"
            ) from None
        if not math.isfinite(number):
            raise ValueError(f"{field}={text!r}: {item.strip()} is no finite number; give one")
        if name in parsed:
            raise ValueError(f"{field}={text!r} names {name} twice; name it once")
        parsed[name] = number
    return parsed


def reward_log_names(names: Sequence[str]) -> list[str]:
    """Return the names of reward functions in the log, each different: of `module:function` the
    function, or the whole name where another reward has that of the function.

    >>> reward_log_names(["correctness", "own:correctness", "own:short"])
    ['correctness', 'own:correctness', 'short']
    """
    short = [name.rpartition(":")[2] for name in names]
    counts = Counter([*short, *OTHER_REWARDS])
    return [one if counts[one] == 1 else name for one, name in zip(short, names, strict=True)]
