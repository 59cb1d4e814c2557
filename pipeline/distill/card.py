"""The card of distilled data: where the rows come from and how they were chosen."""

from collections.abc import Mapping

from pipeline.distill.selection import Selection

NAMES = {"teacher_model": "model", "n": "samples of a question", "max_tokens": "tokens of a sample"}


def figures(selection: Selection) -> dict[str, object]:
    """Counts of questions and samples.

    `mean_right` is the mean share of right samples of a question, as in avg@k.
    """
    shares = [r / n for r, n in zip(selection.right_Q, selection.sampled_Q, strict=True)]
    return {
        "questions": len(shares),
        "questions_with_a_right_sample": sum(map(bool, selection.right_Q)),
        "mean_right": round(sum(shares) / len(shares), 4) if shares else None,
        "samples": dict(selection.fates),
        "rows": len(selection.rows),
    }


def card_text(settings: Mapping[str, object], selection: Selection) -> str:
    """README.md of the folder, with the front matter that the Hub reads for a data set."""
    found = figures(selection)
    sampling = [(NAMES.get(k, k), v) for k, v in settings.items() if v is not None]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            "    path: train.jsonl",
            "tags: [reasoning, distillation, synthetic]",
            "---",
            "",
            "# Distilled worked solutions",
            "",
            "Questions with a thought and an answer. A language model wrote the thoughts, and the "
            "grader of thinkhead compared each answer with the one of the data set. A right answer "
            "does not prove that every step of its thought is right.",
            "",
            "| sampling | |",
            "| :-- | :-- |",
            *(f"| {name} | {str(value).replace('|', '/')} |" for name, value in sampling),
            "",
            "| result | |",
            "| :-- | --: |",
            f"| questions | {found['questions']:,} |",
            f"| with a right sample | {found['questions_with_a_right_sample']:,} |",
            f"| mean share of right samples | {found['mean_right']} |",
            *(f"| samples: {fate} | {n:,} |" for fate, n in selection.fates.items()),
            f"| rows | {found['rows']:,} |",
            "",
            "The licences of the questions and the terms of the teacher apply to this data.",
            "",
        ]
    )
