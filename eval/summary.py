"""The figures of one evaluation, out of its records."""

from collections.abc import Sequence
from typing import Any

from eval.metrics.scores import accuracy, mean_tokens
from pipeline.calculator import sums_in

_KINDS = ("prompt", "reasoning", "visible")


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one evaluation: a pure function of its records."""
    usages = [row["usage"] for row in rows]
    completion_Q = [u["reasoning_tokens"] + u["visible_tokens"] for u in usages]
    spent = {kind: sum(u[f"{kind}_tokens"] for u in usages) for kind in _KINDS}
    cost = mean_tokens(completion_Q)
    levels = sorted({row["level"] for row in rows})
    return {
        **_share_correct(rows),
        "by_level": {
            level: _share_correct([row for row in rows if row["level"] == level])
            for level in levels
        },
        "thoughts_hold": _thoughts_hold(rows),
        "finished": sum(row["finish_reason"] == "stop" for row in rows) / len(rows),
        "tokens": spent | {"total": sum(spent.values())},
        "completion_tokens_per_question": {"mean": cost.mean, "ci95": [cost.low, cost.high]},
        "seconds": sum(row["seconds"] for row in rows),
    }


def summary(metrics: dict[str, Any]) -> str:
    """One line for a person: accuracy with interval, n, tokens a question, share finished."""
    low, high = metrics["ci95"]
    return (
        f"{metrics['suite']} {metrics['strategy']}: accuracy {metrics['accuracy']:.1%} "
        f"[{low:.1%}, {high:.1%}], n={metrics['n']}, "
        f"{metrics['completion_tokens_per_question']['mean']:.1f} tokens a question, "
        f"{metrics['finished']:.1%} finished, {metrics['seconds']:.0f} s"
    )


def thought_holds(row: dict[str, Any]) -> bool | None:
    """Whether every sum in a record's thought comes out; None without any.

    >>> thought_holds({"reasoning": "1+1=2"}), thought_holds({"reasoning": "1+1=3"})
    (True, False)
    """
    written = list(sums_in(row["reasoning"]))
    return all(each.holds for each in written) if written else None


def _thoughts_hold(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the thoughts with a written sum, the share in which every sum comes out; None without
    any."""
    sound = [held for held in map(thought_holds, rows) if held is not None]
    if not sound:
        return None
    share = accuracy(sound)
    return {"n": len(sound), "share": share.mean, "ci95": [share.low, share.high]}


def _share_correct(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    share = accuracy([row["correct"] for row in rows])
    return {"n": len(rows), "accuracy": share.mean, "ci95": [share.low, share.high]}
