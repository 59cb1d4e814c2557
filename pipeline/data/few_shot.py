"""Apply the prompt settings of a command to a tokenizer: template, system prompt, examples."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompt_settings import (
    PromptSettings,
    WorkedExample,
    set_prompt,
    stored_prompt,
)
from pipeline.chat.template import choose_template
from pipeline.config import OwnDataConfig, PromptConfig
from pipeline.data.problems import read_problems
from pipeline.data.sft_examples import visible_answer
from pipeline.records import Problem


def apply_prompt(
    tokenizer: PreTrainedTokenizerBase,
    config: PromptConfig,
    *,
    examples: Sequence[Problem] | None = None,
    think: bool = True,
) -> PromptSettings:
    """Store the settings in the tokenizer's chat template and return all that it has then.

    Args:
        examples: what `few_shot_problems` found; of a conversation the last answer shows its
            thought, as the turns before it do in a question
        think: whether the examples show their thoughts

    Raises:
        ValueError: a setting cannot be applied.
    """
    choose_template(tokenizer, config.chat_template)
    system = "" if config.system_prompt == "none" else config.system_prompt
    worked = None
    if examples is not None:
        worked = [
            WorkedExample(
                question=p.question,
                answer=visible_answer(p),
                thought=p.thought if think else "",
                turns=without_system(p),
            )
            for p in examples
        ]
        if not config.counts_rows:
            kept = stored_prompt(tokenizer).system_prompt if system is None else system
            _require_one_system_prompt(examples, kept)
    return set_prompt(tokenizer, system_prompt=system, examples=worked)


def without_system(problem: Problem) -> tuple[tuple[str, str], ...]:
    """(role, text) of the messages before the question, without those of the system.

    A prompt has one system message, at its beginning and not between two examples.
    """
    return tuple((role, text) for role, text in problem.turns if role != "system")


def _require_one_system_prompt(examples: Sequence[Problem], system_prompt: str) -> None:
    """Raise ValueError for an example of a file whose system message would be lost."""
    for number, problem in enumerate(examples, start=1):
        for role, text in problem.turns:
            if role == "system" and text != system_prompt:
                raise ValueError(
                    f"few_shot: example {number} has the system message {text[:60]!r}, and a "
                    "prompt has only one: give it as system_prompt, or take it out of the example"
                )


def few_shot_problems(
    config: PromptConfig, rows: Callable[[int], Sequence[Problem]] | None = None
) -> list[Problem] | None:
    """The examples that `few_shot` names; None where it is not given.

    Args:
        rows: the first N training rows; None where a command has no training rows

    Raises:
        ValueError: no such file, or fewer rows than asked for.
    """
    text = config.few_shot
    if text is None:
        return None
    if not config.counts_rows:
        return read_problems(text, "train", own=OwnDataConfig()).problems
    number = int(text)
    if number < 0:
        raise ValueError(f"few_shot={text} must be at least 0; 0 removes stored examples")
    if not number:
        return []
    if rows is None:
        raise ValueError(
            f"few_shot={text}: this command has no training rows; give a file of examples"
        )
    found = list(rows(number))
    if len(found) < number:
        raise ValueError(f"few_shot={text}: there are only {len(found)} rows; ask for fewer")
    return found
