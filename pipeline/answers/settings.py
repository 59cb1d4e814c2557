"""What decides the answers of a command, and whether questions leave room for them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import encode_questions
from pipeline.chat.prompt_settings import template_fingerprint
from pipeline.chat.prompts import Question
from pipeline.model import verifier_of
from pipeline.model.atomic import weights_fingerprint
from pipeline.records import Problem
from pipeline.search import SearchOptions


def answer_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
) -> dict[str, object]:
    """Everything that affects the answers and their grades, to compare with settings.json.

    Weights are identified by a hash of their content, since a path may be trained over. The
    verifier has one of its own, because it is no submodule of the model; None without a verifier.
    """
    verifier = verifier_of(model)
    return {
        "strategy": strategy,
        **asdict(options),
        "problems": problems_fingerprint(problems),
        "checks": checks_fingerprint(problems),
        "weights": weights_fingerprint(model),
        "chat_template": template_fingerprint(tokenizer),
        "verifier": None if verifier is None else weights_fingerprint(verifier),
    }


def problems_fingerprint(problems: Sequence[Problem]) -> str:
    """Number of problems, and 16 hex digits: a hash of questions and expected answers.

    >>> problems_fingerprint([Problem(question="2+3?", answer="5")])
    '1 (30250b6c5d925103)'
    """
    return f"{len(problems)} ({_hash([(p.id, p.question, p.answer, *p.turns) for p in problems])})"


def checks_fingerprint(problems: Sequence[Problem]) -> str:
    """16 hex digits: a hash of the tests by which programs are graded; "" without any."""
    checks = [p.check for p in problems]
    return _hash(checks) if any(checks) else ""


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def too_long_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    questions: Sequence[Question],
    options: SearchOptions,
    remedy: str | None,
) -> set[Problem]:
    """The problems whose question leaves no room for an answer in the context window.

    Args:
        questions: what is asked of each problem
        remedy: the option that answers the other questions, for the error; None: no error

    Raises:
        ValueError: there is one, unless `remedy` is None.
    """
    window = getattr(model.config, "max_position_embeddings", None)
    if window is None:
        return set()
    prompts = encode_questions(tokenizer, questions, think=options.think)
    rooms = [window - len(prompt) for prompt in prompts]
    found = {p for p, room in zip(problems, rooms, strict=True) if room < options.sample_tokens}
    if found and remedy is not None:
        longest = min(range(len(rooms)), key=rooms.__getitem__)
        names = ("max_sample_tokens", "reasoning_effort")
        given = (name for name in names if getattr(options, name) is not None)
        name = next(given, "max_completion_tokens")
        raise ValueError(
            f"{name} allows {options.sample_tokens} tokens per answer, but beside question "
            f"{problems[longest].id or longest + 1}, the longest of {len(found)} that are too "
            f"long, the model's window of {window} tokens has room for {max(rooms[longest], 0)}: "
            f"lower --{name}, shorten these questions, take a model with a longer window, or give "
            f"{remedy}"
        )
    return found
