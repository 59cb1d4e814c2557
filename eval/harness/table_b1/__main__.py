"""Write the tasks of Table B1 and GPQA, run lm-evaluation-harness on them, and print the table."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.harness.__main__ import (
    PLAIN_PROMPT,
    HarnessOptions,
    command_of_tasks,
    fill_template,
    require_plain_model,
    run_harness,
)
from eval.harness.table_b1.metrics import CORPUS_METRICS
from eval.harness.table_b1.tasks import GLUE, TASKS, Doc, task_docs
from eval.tables import markdown_table
from pipeline.chat.plain import end_of_turn_ids, opens_thought, stop_text
from pipeline.cli import CommandParser
from pipeline.config import PositiveInt, require
from pipeline.model.resolve import resolve_checkpoint
from pipeline.runtime import one_line_errors, write_json

HERE = Path(__file__).parent
Results = Mapping[str, Mapping[str, float]]


@dataclass(kw_only=True)
class TableArguments(HarnessOptions):
    """The tasks; table_b1.json in `output_dir` has their scores."""

    tasks: str = HfArg(
        default="glue,squad_v2,coqa,winogrande,hellaswag", help=f"glue, or {', '.join(TASKS)}"
    )
    data_root: str | None = HfArg(default=None, help="folder of NAME.jsonl; default: the Hub")
    limit: PositiveInt | None = HfArg(default=None, help="first questions of each task")

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in TASKS]
        require(not unknown, f"tasks: {', '.join(unknown)} is none of glue, {', '.join(TASKS)}")
        super().__post_init__()

    @property
    def names(self) -> list[str]:
        """The names of the tasks, those of GLUE one by one."""
        given = [name.strip() for name in self.tasks.split(",")]
        return [task for name in given for task in (GLUE if name == "glue" else (name,))]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks; exit with the harness' exit code if it fails."""
    (args,) = CommandParser(TableArguments).parse_args_and_config(argv)
    found = resolve_checkpoint(args.checkpoint)
    require_plain_model(found)
    tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    stored = AutoConfig.from_pretrained(found, trust_remote_code=False).dtype or torch.float32
    folder = Path(args.output_dir).absolute()
    for name in args.names:
        docs = task_docs(name, args.data_root, args.limit)
        require(bool(docs), f"{name} has no row with an answer; give its validation split")
        write_task(folder / "tasks", name, docs, args.max_completion_tokens, tokenizer)
    tasks = ",".join(f"thinkhead_b1_{name}" for name in args.names)
    chat = stop_text(tokenizer) is None
    command = command_of_tasks(
        tasks, folder / "tasks", folder / "out", args, found, stored, chat=chat
    )
    print(f"$ {' '.join(command)}", flush=True)
    if args.only_tasks:
        return
    if code := run_harness(command):
        raise SystemExit(code)
    scores = read_scores(folder / "out")
    write_json(folder / "table_b1.json", {"tasks": scores, "table": table_b1(scores)})
    rows = [[name, f"{100 * score:.1f}"] for name, score in table_b1(scores).items()]
    print(markdown_table([["task", "score"], *rows]))


def write_task(
    folder: Path, name: str, docs: Sequence[Doc], tokens: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write NAME.jsonl, NAME.yaml and the scoring, for the model of the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    stop, ends = stop_text(tokenizer), end_of_turn_ids(tokenizer)
    metrics = "\n".join(_metric(metric) for metric in TASKS[name].metrics)
    filled = {
        "NAME": name,
        "FILTER": "visible" if opens_thought(tokenizer, None) else "direct",
        "PROMPT": json.dumps("{{question}}" if stop is None else PLAIN_PROMPT),
        "UNTIL": json.dumps([stop] if stop else tokenizer.convert_ids_to_tokens(ends)),
        "DATA": json.dumps(str(data)),
        "TOKENS": str(tokens),
        "METRICS": metrics,
    }
    task = (HERE / "task.yaml").read_text(encoding="utf-8")
    (folder / f"{name}.yaml").write_text(fill_template(task, filled), encoding="utf-8")
    shutil.copy(HERE / "scoring.py", folder / "scoring.py")


def _metric(name: str) -> str:
    combined = f"!function scoring.{name}" if name in CORPUS_METRICS else "mean"
    return f"  - metric: {name}\n    aggregation: {combined}\n    higher_is_better: true"


def read_scores(folder: Path) -> dict[str, dict[str, float]]:
    """{task: {metric: score}} of the harness' newest results file in the folder."""
    paths = sorted(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise FileNotFoundError(f"{folder} has no results_*.json: the harness wrote no result")
    results = json.loads(paths[-1].read_text(encoding="utf-8"))["results"]
    return {
        name.removeprefix("thinkhead_b1_"): {
            key.partition(",")[0]: float(score)
            for key, score in row.items()
            if key.endswith(",visible") and "_stderr" not in key
        }
        for name, row in results.items()
    }


def table_b1(scores: Results) -> dict[str, float]:
    """{task: score}: GLUE as the mean over its tasks of the means of their metrics, F1 of spans.

    >>> table_b1({"cola": {"mcc": 0.5}, "mrpc": {"acc": 0.7, "binary_f1": 0.8}})["GLUE (2 of 9)"]
    0.625
    """
    glue = [list(scores[name].values()) for name in GLUE if name in scores]
    table = {}
    if glue:
        own = [sum(values) / len(values) for values in glue]
        table[f"GLUE ({len(glue)} of {len(GLUE)})"] = sum(own) / len(own)
    for name, row in scores.items():
        if name not in GLUE:
            table[name] = row["f1"] if "f1" in row else row["acc"]
    return table


if __name__ == "__main__":
    main()
