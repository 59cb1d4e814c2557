"""Write suites as tasks of lm-evaluation-harness and run it on a checkpoint folder, offline."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.suites import find_suite, read_suite, suite_label
from pipeline.chat.plain import (
    end_of_turn_ids,
    has_reasoning_tokens,
    opens_thought,
    stop_text,
)
from pipeline.cli import CommandParser
from pipeline.config import PositiveInt, Required, check_types, require
from pipeline.device import DeviceOptions, choose_device, choose_dtype
from pipeline.generation.vllm_engine import require_vllm, vllm_dtype
from pipeline.model.reasoning_file import REASONING_FILE
from pipeline.model.resolve import resolve_checkpoint
from pipeline.records import Problem
from pipeline.runtime import folder_name, one_line_errors

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLAIN_PROMPT = "Question: {{question}}\nAnswer:"  # as PLAIN_TEMPLATE of pipeline.chat.plain


@dataclass(kw_only=True)
class HarnessOptions(DeviceOptions):
    """The options of every command that runs the harness."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder")
    output_dir: Required = HfArg(default="", help="folder of tasks and results")
    max_completion_tokens: PositiveInt = HfArg(
        default=256, help="maximum tokens of one completion, thought included"
    )
    batch_size: PositiveInt = HfArg(default=16, help="sequences decoded in parallel")
    engine: Literal["hf", "vllm"] = HfArg(default="hf", help="the model class of lm_eval")
    only_tasks: bool = HfArg(default=False, help="write the task files without running them")

    def __post_init__(self) -> None:
        check_types(self)
        choose_device(self.device)
        require(
            self.only_tasks or find_spec("lm_eval") is not None,
            "lm_eval is not installed here: pip install '.[harness]', or pass --only_tasks true",
        )
        if self.engine == "vllm" and not self.only_tasks:
            require_vllm()


@dataclass(kw_only=True)
class HarnessArguments(HarnessOptions):
    """The suites; `output_dir` has a folder for each."""

    suites: str = HfArg(default="gsm8k,arc_challenge,math500", help="names, separated by commas")
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    limit: PositiveInt | None = HfArg(
        default=None, help="number of problems, evenly spread over the suite"
    )

    def __post_init__(self) -> None:
        for name in self.names:
            find_suite(name)
        folders = {folder_name(suite_label(name)) for name in self.names}
        require(
            len(folders) == len(self.names),
            f"suites={self.suites!r} has two suites of one name, which names the folder of a task; "
            "rename a file, or run them one by one with an --output_dir each",
        )
        super().__post_init__()

    @property
    def names(self) -> list[str]:
        """The names of the suites."""
        return [name.strip() for name in self.suites.split(",")]


def require_plain_model(folder: Path) -> None:
    """Raise ValueError for a checkpoint of which the harness would load a part only."""
    require(
        not (folder / REASONING_FILE).exists(),
        f"{folder} has a reasoning layer ({REASONING_FILE}), which the harness would leave out of "
        "the model; evaluate it with eval.run",
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Write and run the task of every suite; exit with the harness' exit code if it fails."""
    (args,) = CommandParser(HarnessArguments).parse_args_and_config(argv)
    found = resolve_checkpoint(args.checkpoint)
    require_plain_model(found)
    tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    stored = AutoConfig.from_pretrained(found, trust_remote_code=False).dtype or torch.float32
    for name in args.names:
        own = folder_name(suite_label(name))
        folder = Path(args.output_dir).absolute() / own
        problems = read_suite(name, args.data_root, args.limit).problems
        require(
            not any(p.turns for p in problems),
            f"{name} has conversations, of which a task of the harness has the last turn only; "
            "evaluate it with eval.run",
        )
        write_task(folder / "task", own, problems, args.max_completion_tokens, tokenizer)
        chat = stop_text(tokenizer) is None
        command = harness_command(folder, own, args, found, stored, chat=chat)
        print(f"$ {' '.join(command)}", flush=True)
        if not args.only_tasks and (code := run_harness(command)):
            raise SystemExit(code)


def write_task(
    folder: Path,
    name: str,
    problems: Sequence[Problem],
    tokens: int,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write problems.jsonl, the task file and its scoring, for the model of the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": p.id,
            "question": p.question,
            "answer": p.answer,
            "check": p.check,
            "baseline": not has_reasoning_tokens(tokenizer),
        }
        for p in problems
    ]
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = (HERE / "task.yaml").read_text(encoding="utf-8")
    stop, ends = stop_text(tokenizer), end_of_turn_ids(tokenizer)
    filled = {
        "FILTER": "visible" if opens_thought(tokenizer, None) else "direct",
        "PROMPT": json.dumps("{{question}}" if stop is None else PLAIN_PROMPT),
        "UNTIL": json.dumps([stop] if stop else tokenizer.convert_ids_to_tokens(ends)),
        "SUITE": name,
        "DATA": json.dumps(str(data)),
        "TOKENS": str(tokens),
    }
    (folder / f"{name}.yaml").write_text(fill_template(task, filled), encoding="utf-8")
    shutil.copy(HERE / "scoring.py", folder / "scoring.py")


def fill_template(text: str, values: Mapping[str, str]) -> str:
    """The text with every mark replaced by its value; a value may contain the name of a mark.

    >>> fill_template("task: NAME, DATA", {"NAME": "my_DATA", "DATA": "rows"})
    'task: my_DATA, rows'
    """
    return re.sub("|".join(values), lambda mark: values[mark.group()], text)


def harness_command(
    folder: Path, name: str, args: HarnessArguments, found: Path, stored: torch.dtype, *, chat: bool
) -> list[str]:
    """The command line of the harness for the checkpoint folder `found`.

    Prompts are formatted by the chat template as in eval.run; its default opens a thought or closes
    an empty one, as the model was trained. The harness' `think_end_token` stays unset, because it
    would return an unfinished thought as the answer; scoring.py removes the thought. `chat` is
    false for a base model without a template.
    """
    task, out = folder / "task", folder / "out"
    return command_of_tasks(f"thinkhead_{name}", task, out, args, found, stored, chat=chat)


def command_of_tasks(
    tasks: str,
    folder: Path,
    out: Path,
    args: HarnessOptions,
    found: Path,
    stored: torch.dtype,
    *,
    chat: bool,
) -> list[str]:
    """The command line for tasks, separated by commas, whose files are in the folder.

    Args:
        found: the resolved checkpoint: the harness knows neither smol nor user/name@revision, nor
            GGUF and sharded folders.
        stored: its dtype.
    """
    device = choose_device(args.device)
    dtype = str(choose_dtype(args.dtype, stored, device)).removeprefix("torch.")
    own = args.engine == "hf"  # vLLM chooses the device, and batches what fits
    model = f"pretrained={found},dtype={dtype if own else vllm_dtype(args.dtype)}"
    where = ("--device", device, "--batch_size", str(args.batch_size))
    return [
        *(sys.executable, "-m", "lm_eval", "run", "--model", args.engine, "--model_args", model),
        *("--tasks", tasks, "--include_path", str(folder)),
        *(where if own else ("--batch_size", "auto")),
        *(("--apply_chat_template",) if chat else ()),
        *("--log_samples", "--output_path", str(out)),
    ]


def run_harness(command: Sequence[str]) -> int:
    """Run the harness without network and with this project importable; its exit code."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.run(command, env=os.environ | offline, check=False).returncode


if __name__ == "__main__":
    main()
