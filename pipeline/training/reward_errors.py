"""Name the reward function that fails, with the file and line, in one line."""

import inspect
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

REMEDY = "correct the function, then run the same command again"


class RewardError(ValueError):
    """A reward function raised an exception or returned something other than a number or None.

    `on_all_processes` says that every process of the run raises one (`raise_together`).
    """

    on_all_processes = False


class NoRewardError(RewardError):
    """No reward function applies to any completion, or one raised SystemExit."""


@contextmanager
def reward_errors(name: str, function: Callable) -> Iterator[None]:
    """Raise RewardError where the block, which calls the reward function, raises an exception, and
    NoRewardError for a SystemExit, which would end the run with exit code 0."""
    try:
        yield
    except RewardError:
        raise
    except SystemExit as error:
        raise NoRewardError(
            f"{name} raised SystemExit({error.code!r}){_location(function, error)}; a reward is a "
            "number, or None where it does not apply: correct the function"
        ) from error
    except Exception as error:
        said = " ".join(str(error).split())
        raised = f"{type(error).__name__}{': ' if said else ''}{said}"
        raise RewardError(
            f"{name} raised {raised}{_location(function, error)}; {REMEDY}"
        ) from error


def reward_number(name: str, function: Callable, value: object) -> float | None:
    """Return a result of a reward function as a float; None stays None.

    Raises:
        RewardError: the result is no number, such as a text or a list.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes | bytearray):  # float() would read them
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong_result(name, function, value, "a number") from error


def reward_steps(name: str, function: Callable, found: object) -> list[tuple[int, float]] | None:
    """Return a result of a function of step rewards as a list; None stays None.

    Raises:
        RewardError: the result is no sequence of pairs (character offset, reward).
    """
    if found is None:
        return None
    try:
        pairs = [(at, reward) for at, reward in found]  # type: ignore[attr-defined]
        if any(reward_number(name, function, x) is None for pair in pairs for x in pair):
            raise TypeError
        return [(at, float(reward)) for at, reward in pairs]
    except (TypeError, ValueError) as error:
        wanted = "pairs (character offset, reward)"
        raise _wrong_result(name, function, found, wanted) from error


@contextmanager
def raise_together(accelerator: Accelerator) -> Iterator[None]:
    """Raise RewardError on every process where the block raises it on one.

    All processes must enter it together. Otherwise the others would wait for the one that failed.
    """
    failure: RewardError | None = None
    try:
        yield
    except RewardError as error:
        failure = error
    if accelerator.num_processes > 1:
        failed = torch.tensor(float(failure is not None), device=accelerator.device)
        if accelerator.reduce(failed, reduction="sum") and failure is None:
            failure = RewardError("a reward function failed on another process, which names it")
    if failure is not None:
        failure.on_all_processes = True
        raise failure


def _wrong_result(name: str, function: Callable, value: object, wanted: str) -> RewardError:
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return RewardError(
        f"{name} returned {shown} ({type(value).__name__}){_location(function)}, and must return "
        f"{wanted}, or None where it does not apply; {REMEDY}"
    )


def _location(function: Callable, error: BaseException | None = None) -> str:
    """Return " (FILE:LINE)": the last line in the function's file that the error passed, else
    the definition of the function; "" where it has no Python source."""
    function = inspect.unwrap(getattr(function, "func", function))  # `func` of functools.partial
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(type(function).__call__, "__code__", None)
    if code is None:
        return ""
    line = code.co_firstlineno
    for frame, number in traceback.walk_tb(error.__traceback__ if error else None):
        if frame.f_code.co_filename == code.co_filename:
            line = number
    path = os.path.relpath(code.co_filename)
    return f" ({code.co_filename if path.startswith('..') else path}:{line})"
