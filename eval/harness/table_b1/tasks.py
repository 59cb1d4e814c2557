"""Rows of GLUE, SQuAD 2.0, CoQA, WinoGrande, HellaSwag and GPQA as questions with an answer.

A question is plain text with lettered choices, so that a model that thinks first answers it as any
other; log-likelihoods of the choices would leave out the thought.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from eval.harness.table_b1.metrics import LETTERS, UNANSWERABLE

Row = Mapping[str, Any]
Doc = dict[str, object]


@dataclass(frozen=True)
class Task:
    """One task: where its data is on the Hub, its metrics, and the documents of a row."""

    hub: tuple[str, str | None, str]  # repository, configuration, split
    metrics: tuple[str, ...]
    docs: Callable[[Row], Iterable[Doc]]


def _choice(metrics: tuple[str, ...], text: str, choices: Sequence[str], label: int) -> Doc:
    listed = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    return {
        "kind": "choice",
        "question": f"{text}\n\n{listed}\n\nAnswer with one letter.",
        "answer": LETTERS[label],
        "choices": list(choices),
        "label": label,
        "metrics": list(metrics),
    }


def _glue(config: str, text: str, choices: Sequence[str], metrics: tuple[str, ...]) -> Task:
    """A task of GLUE whose label is an index into the choices; -1 marks rows of the test set."""

    def docs(row: Row) -> Iterator[Doc]:
        if int(row["label"]) >= 0:
            yield _choice(metrics, text.format(**row), choices, int(row["label"]))

    split = "validation_matched" if config == "mnli" else "validation"
    return Task(("nyu-mll/glue", config, split), metrics, docs)


def _similarity(row: Row) -> Iterator[Doc]:
    if float(row["label"]) >= 0:
        yield {
            "kind": "number",
            "question": f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}\n\nHow "
            "similar is their meaning, from 0 (unrelated) to 5 (equal)? Answer with one number.",
            "answer": str(row["label"]),
            "label": float(row["label"]),
        }


def _span(text: str, answers: Sequence[str], *, held_out: bool = False) -> Doc:
    return {
        "kind": "span",
        "question": text,
        "answer": answers[0] if answers else UNANSWERABLE,
        "answers": list(answers),
        "held_out": held_out,
    }


def _squad(row: Row) -> Iterator[Doc]:
    text = (
        f"{row['context']}\n\nQuestion: {row['question']}\n\nAnswer with words of the text, or "
        f'with "{UNANSWERABLE}" if it does not say.'
    )
    yield _span(text, list(dict.fromkeys(row["answers"]["text"])))


def _coqa(row: Row) -> Iterator[Doc]:
    """One document for each turn, with the true answers of the turns before it."""
    questions, answers = row["questions"]["input_text"], row["answers"]["input_text"]
    more = [other["input_text"] for other in (row.get("additional_answers") or {}).values()]
    said = ""
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        text = f"{row['story']}\n\n{said}Q: {question}\n\nAnswer the last question briefly."
        yield _span(text, [answer, *(other[i] for other in more)], held_out=True)
        said += f"Q: {question}\nA: {answer}\n"


def _winogrande(row: Row) -> Iterator[Doc]:
    if row["answer"] in ("1", "2"):
        text = f"Which word belongs in the gap?\n{row['sentence']}"
        yield _choice(("acc",), text, [row["option1"], row["option2"]], int(row["answer"]) - 1)


def _hellaswag(row: Row) -> Iterator[Doc]:
    if str(row["label"]) != "":
        text = f"{row['activity_label']}: {_clean(row['ctx'])}\n\nWhich ending follows?"
        yield _choice(("acc",), text, [_clean(x) for x in row["endings"]], int(row["label"]))


def _clean(text: str) -> str:
    """The text without WikiHow's marks, as lm-evaluation-harness cleans it."""
    return " ".join(re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).split())


def _gpqa(row: Row) -> Iterator[Doc]:
    """The choices are in an order that follows from the question."""
    right = row["Correct Answer"].strip()
    choices = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
    choices.sort(key=lambda choice: sha256((row["Question"] + choice).encode()).digest())
    yield _choice(("acc",), row["Question"].strip(), choices, choices.index(right))


_PAIR = "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n\n"
ENTAILED = ("yes", "no")
TASKS: dict[str, Task] = {
    "cola": _glue("cola", "Is this an acceptable sentence?\n{sentence}", ("no", "yes"), ("mcc",)),
    "sst2": _glue(
        "sst2",
        "Is this sentence negative or positive?\n{sentence}",
        ("negative", "positive"),
        ("acc",),
    ),
    "mrpc": _glue("mrpc", _PAIR + "Do both mean the same?", ("no", "yes"), ("acc", "binary_f1")),
    "qqp": _glue(
        "qqp",
        "Question 1: {question1}\nQuestion 2: {question2}\n\nDo both ask the same?",
        ("no", "yes"),
        ("acc", "binary_f1"),
    ),
    "stsb": Task(("nyu-mll/glue", "stsb", "validation"), ("pearson", "spearman"), _similarity),
    "mnli": _glue(
        "mnli",
        "{premise}\n\nIs this true, undecided or false? {hypothesis}",
        ("true", "undecided", "false"),
        ("acc",),
    ),
    "qnli": _glue(
        "qnli", "{question}\n\nDoes this sentence answer it? {sentence}", ENTAILED, ("acc",)
    ),
    "rte": _glue("rte", _PAIR + "Does sentence 2 follow from 1?", ENTAILED, ("acc",)),
    "wnli": _glue("wnli", _PAIR + "Does sentence 2 follow from 1?", ("no", "yes"), ("acc",)),
    "squad_v2": Task(("rajpurkar/squad_v2", None, "validation"), ("exact", "f1"), _squad),
    "coqa": Task(("EleutherAI/coqa", None, "validation"), ("exact", "f1"), _coqa),
    "winogrande": Task(
        ("allenai/winogrande", "winogrande_xl", "validation"), ("acc",), _winogrande
    ),
    "hellaswag": Task(("Rowan/hellaswag", None, "validation"), ("acc",), _hellaswag),
    "gpqa": Task(("Idavidrein/gpqa", "gpqa_diamond", "train"), ("acc",), _gpqa),
}
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")


def task_docs(name: str, data_root: str | None, limit: int | None = None) -> list[Doc]:
    """The documents of a task, from DATA_ROOT/NAME.jsonl (also .gz), else from the Hub.

    `limit` keeps the documents of the first rows, at most so many. Raises FileNotFoundError for a
    data root without the file, ValueError for a row that lacks a field of the task.
    """
    found: list[Doc] = []
    for number, row in enumerate(_rows(name, data_root), start=1):
        try:
            docs = list(TASKS[name].docs(row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"row {number} of {name} does not have the fields of "
                f"{TASKS[name].hub[0]} ({type(error).__name__}: {error}); correct the row"
            ) from error
        found += docs
        if limit is not None and len(found) >= limit:
            return found[:limit]
    return found


def _rows(name: str, data_root: str | None) -> Iterator[Row]:
    if data_root is None:
        from datasets import load_dataset

        repository, config, split = TASKS[name].hub
        yield from load_dataset(repository, config, split=split)
        return
    file = Path(data_root) / f"{name}.jsonl"
    packed = file.with_name(f"{file.name}.gz")
    if file.is_file() or packed.is_file():
        data = file.read_bytes() if file.is_file() else gzip.decompress(packed.read_bytes())
        yield from (json.loads(line) for line in data.splitlines() if line.strip())
        return
    raise FileNotFoundError(
        f"{data_root} has no {name}.jsonl or {name}.jsonl.gz; put the rows of {TASKS[name].hub[0]} "
        "there, or leave data_root out to read the Hub"
    )
