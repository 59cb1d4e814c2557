"""Answers to a file of questions: rows in the order of the file, in a folder that resumes."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.answers.run_folder import RunFolder
from pipeline.answers.settings import answer_settings, too_long_problems
from pipeline.answers.shared_folder import answer_all
from pipeline.chat.prompt_settings import stored_prompt
from pipeline.config import OwnDataConfig
from pipeline.data import read_problems
from pipeline.folder_lock import lock_folder
from pipeline.hosts import this_place
from pipeline.records import Answer, Problem, Usage
from pipeline.runtime import write_run_info
from pipeline.search import STRATEGIES, SearchOptions

Row = dict[str, object]


def read_questions(name: str, own: OwnDataConfig) -> list[Problem]:
    """The questions of a file, a folder saved by `datasets` or a Hub id; their answers are "".

    Raises:
        ValueError: the data cannot be read, its columns cannot be told, or a row has no question.
            A row without a question is refused, so that there is an answer for every row.
    """
    report = read_problems(name, own.dataset_split or "test", own=own)
    if report.note:
        print(report.note)
    if report.dropped:
        first = report.examples[0]
        raise ValueError(
            f"{name}: row {first.line}: {first.reason} ({first.excerpt!r}); "
            f"{report.rows_read - report.kept} of {report.rows_read} rows have no question: "
            "mend or remove them, or name the column with --columns question=COLUMN"
        )
    return report.problems


def answer_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
    output_dir: str | Path,
    *,
    show_reasoning: bool = False,
    too_long: str = "refuse",
) -> list[Row]:
    """Answer every question; write records.jsonl chunk by chunk, and return its rows.

    A row has id, question, answer, finish_reason, value and usage, and with `show_reasoning` the
    thought. Questions that are already answered in the folder are skipped. An answer depends on its
    question and the options only, so that a resumed run has the answers of an unbroken one. Under
    `accelerate launch` the processes share the chunks; on all but the first no row is returned.

    Args:
        too_long: "refuse" raises ValueError, before any answer, for a question that leaves no room
            for its answer; "empty" gives it an empty answer with finish_reason "too_long"

    Raises:
        ValueError: invalid options, or the folder has other answers.
    """
    options = options.for_model(tokenizer)
    questions = [p.prompt for p in problems]
    remedy = "--too_long empty" if too_long == "refuse" else None
    skipped = too_long_problems(model, tokenizer, problems, questions, options, remedy)
    settings = {"command": "infer", "show_reasoning": show_reasoning, "too_long": too_long}
    settings |= answer_settings(model, tokenizer, problems, strategy, options)
    settings |= stored_prompt(tokenizer).as_dict()

    def answer(part: Sequence[Problem], start: int) -> list[Row]:
        asked = [p for p in part if p not in skipped]
        answers = iter(
            STRATEGIES[strategy](model, tokenizer, [p.prompt for p in asked], options)
            if asked
            else []
        )
        empty = Answer(text="", usage=Usage(), finish_reason="too_long")
        return [_row(p, empty if p in skipped else next(answers), show_reasoning) for p in part]

    with lock_folder(output_dir):
        folder: RunFolder[Row] = RunFolder(
            output_dir,
            settings,
            chunk=max(1, options.batch_size // options.n),
            total=len(problems),
            holds="answers",
        )
        place = this_place()
        answer_all(folder, problems, answer, strategy, place)
        if not place.is_main:
            return []
        write_run_info(folder.path, **settings)
    return folder.rows


def _row(problem: Problem, answer: Answer, show_reasoning: bool) -> Row:
    row: Row = {"id": problem.id, "question": problem.question, "answer": answer.text}
    if show_reasoning:
        row["thought"] = answer.thought
    return row | {
        "finish_reason": answer.finish_reason,
        "value": answer.value,
        "usage": asdict(answer.usage),
    }
