"""Write suites as tasks of lm-evaluation-harness and run it on a checkpoint folder, offline."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer
from transformers.hf_argparser import HfArg

from eval.suites import find_suite, read_suite
from pipeline.chat.prompts import thinks_by_default
from pipeline.cli import CommandParser
from pipeline.config import PositiveInt, Required, check_types, require
from pipeline.model.resolve import resolve_checkpoint
from pipeline.records import Problem
from pipeline.runtime import one_line_errors

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(kw_only=True)
class HarnessArguments:
    """The checkpoint, the suites and the options of the harness."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder")
    suites: str = HfArg(default="gsm8k,arc_challenge,math500", help="names, separated by commas")
    data_root: str | None = HfArg(default=None, help="folder of NAME/SPLIT.jsonl.gz")
    output_dir: Required = HfArg(
        default="", help="folder of tasks and results, one folder per suite"
    )
    limit: PositiveInt | None = HfArg(
        default=None, help="number of problems, evenly spread over the suite"
    )
    max_completion_tokens: PositiveInt = HfArg(
        default=256, help="maximum tokens of one completion, thought included"
    )
    batch_size: PositiveInt = HfArg(default=16, help="sequences decoded in parallel")
    dtype: str = HfArg(default="float32", help="dtype of the weights")
    device: str = HfArg(default="cpu", help="cpu, or cuda:0")
    only_tasks: bool = HfArg(default=False, help="write the task files without running them")

    def __post_init__(self) -> None:
        check_types(self)
        for name in self.names:
            find_suite(name)
        require(
            self.only_tasks or find_spec("lm_eval") is not None,
            "lm_eval is not installed here: pip install '.[harness]', or pass --only_tasks true",
        )

    @property
    def names(self) -> list[str]:
        """The names of the suites."""
        return [name.strip() for name in self.suites.split(",")]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Write and run the task of every suite; exit with the harness' exit code if it fails."""
    (args,) = CommandParser(HarnessArguments).parse_args_and_config(argv)
    found = resolve_checkpoint(args.checkpoint)
    thinks = thinks_by_default(AutoTokenizer.from_pretrained(found, trust_remote_code=False))
    for name in args.names:
        folder = Path(args.output_dir).absolute() / name
        problems = read_suite(name, args.data_root, args.limit).problems
        write_task(folder / "task", name, problems, args.max_completion_tokens, thinks=thinks)
        command = harness_command(folder, name, args)
        print(f"$ {' '.join(command)}", flush=True)
        if not args.only_tasks and (code := run_harness(command)):
            raise SystemExit(code)


def write_task(
    folder: Path, name: str, problems: Sequence[Problem], tokens: int, *, thinks: bool = True
) -> None:
    """Write problems.jsonl, the task file and its scoring; `thinks`: prompts open a thought."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": p.id, "question": p.question, "answer": p.answer, "check": p.check} for p in problems
    ]
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = (HERE / "task.yaml").read_text(encoding="utf-8")
    filled = {
        "FILTER": "visible" if thinks else "direct",
        "SUITE": name,
        "DATA": json.dumps(str(data)),
        "TOKENS": str(tokens),
    }
    for mark, text in filled.items():
        task = task.replace(mark, text)
    (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
    shutil.copy(HERE / "scoring.py", folder / "scoring.py")


def harness_command(folder: Path, name: str, args: HarnessArguments) -> list[str]:
    """The command line of the harness.

    Prompts are formatted by the chat template as in eval.run; its default opens a thought or closes
    an empty one, as the model was trained. The harness' `think_end_token` stays unset, because it
    would return an unfinished thought as the answer; scoring.py removes the thought.
    """
    model = f"pretrained={args.checkpoint},dtype={args.dtype}"
    return [
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model),
        *("--tasks", f"thinkhead_{name}", "--include_path", str(folder / "task")),
        *("--device", args.device, "--batch_size", str(args.batch_size)),
        *("--apply_chat_template", "--log_samples", "--output_path", str(folder / "out")),
    ]


def run_harness(command: Sequence[str]) -> int:
    """Run the harness without network and with this project importable; its exit code."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=os.environ | offline, check=False).returncode


if __name__ == "__main__":
    main()
