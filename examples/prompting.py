"""What the prompting practices of the paper's 5.3 change: one suite, written in four forms.

python -m examples.prompting --suite multiarith --limit 300 --data_root DIR --output_dir FORMS
python -m eval.run --checkpoint DIR --suite FORMS/plain/questions.jsonl --output_dir OUT

Each folder has the same problems with the same ids, so `eval.compare --pair_by id` pairs them:

plain         the question as it is
step_by_step  with "Let's think step by step.", which a model that reasons unasked does not need
delimited     the last sentence as the question, the text before it between <story> and </story>
context       after a paragraph that has nothing to do with it
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.suites import read_suite
from pipeline.chat.prompting import delimited
from pipeline.runtime import one_line_errors

UNRELATED = (
    "The school library opens at 9 in the morning and has 3 rooms. On Fridays it closes at 5, and "
    "12 people work there."
)


def with_delimiters(question: str) -> str:
    """The last sentence as the question, and what comes before it as delimited material.

    >>> print(with_delimiters("Ann has 3 eggs. She buys 2. How many are there?"))
    How many are there?
    <BLANKLINE>
    <story>
    Ann has 3 eggs. She buys 2.
    </story>
    """
    *story, last = re.split(r"(?<=[.!?])\s+", question.strip())
    return delimited(last, {"story": " ".join(story)}) if story else last


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "step_by_step": lambda question: f"{question} Let's think step by step.",
    "delimited": with_delimiters,
    "context": lambda question: f"{UNRELATED}\n\n{question}",
}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Write FORM/questions.jsonl for every form of the questions of a suite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", required=True, help="name of a suite, or a file of your own")
    parser.add_argument("--limit", type=int, help="number of problems, evenly spread")
    parser.add_argument(
        "--data_root", help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    parser.add_argument("--output_dir", required=True, help="folder of FORM/questions.jsonl")
    args = parser.parse_args(argv)
    problems = read_suite(args.suite, args.data_root, args.limit).problems
    folder = Path(args.output_dir)
    for name, form in FORMS.items():
        rows = ({"id": p.id, "question": form(p.question), "answer": p.answer} for p in problems)
        path = folder / name / "questions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    print(f"{len(problems)} problems in {len(FORMS)} forms: {folder}")


if __name__ == "__main__":
    main()
