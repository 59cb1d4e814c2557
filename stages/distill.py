"""Make SFT data from a teacher: sample it on training questions, keep right and distinct answers.

python -m stages.distill --teacher runs/nano/ppo --dataset nano --size 500 --output_dir runs/distill
python -m stages.distill --teacher http://127.0.0.1:8000/v1 --teacher_model NAME \\
    --dataset gsm8k --output_dir runs/distill

The teacher is a checkpoint, any causal LM, or an OpenAI-compatible server, whose key is in the
environment variable of --api_key_env. The folder has `train.jsonl` for `stages.sft --dataset`, a
data card (README.md, data_card.json), and `samples.jsonl` with every sample. The same command again
asks only for what is missing; other settings of the selection need no new samples.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.config import DataConfig, OwnDataConfig, require
from pipeline.data.card import data_card
from pipeline.data.few_shot import apply_prompt
from pipeline.data.problems import read_problems
from pipeline.distill import (
    DistillConfig,
    LocalTeacher,
    OpenAITeacher,
    SampleStore,
    Selection,
    Teacher,
    is_address,
    select,
)
from pipeline.distill.card import card_text, figures
from pipeline.folder_lock import lock_folder
from pipeline.hosts import require_one_process
from pipeline.model import load_for_inference
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, prepare_cpu, write_json, write_run_info
from stages.common import parse, print_summary
from stages.next_steps import command
from stages.training_problems import describe, training_problems

ROWS = "train.jsonl"


def run(config: DistillConfig, data: DataConfig) -> Path:
    """Sample what is missing, select, and write the data set; return its file."""
    require_one_process("stages.distill")
    with lock_folder(config.output_dir):
        return _run(config, data)


def _run(config: DistillConfig, data: DataConfig) -> Path:
    start = time.perf_counter()
    problems = training_problems(data, config.seed)
    require(
        data.chat_template == "own" or not is_address(config.teacher),
        f"chat_template={data.chat_template} is for a local teacher, and the server of "
        f"{config.teacher} has its own template; leave it out",
    )
    prompt = {"system_prompt": data.system_prompt, "template": data.chat_template}
    settings = config.sampling() | prompt | {"dataset": data.dataset}
    store = SampleStore(config.output_dir, settings | {"questions": _fingerprint(problems)})
    left = {i: problem for i, problem in enumerate(problems) if i not in store.samples}
    print(f"{config.teacher}: {config.n} samples each of {describe(problems)}")
    if len(left) < len(problems):
        print(f"{len(problems) - len(left):,} questions have their samples already")
    if left:
        with _teacher(config, data) as teacher:
            store.require_teacher(teacher.fingerprints())
            _sample(teacher, left, store, len(problems))
    selection = select(problems, store.samples, config)
    require(
        bool(selection.rows),
        f"no sample of {sum(selection.sampled_Q):,} is right and complete ({_line(selection)}); "
        "raise --max_tokens or --n, or choose easier questions or another teacher",
    )
    path = _write(config, data, selection, settings)
    lines: dict[str, object] = {
        "rows": f"{len(selection.rows):,} from {sum(map(bool, selection.right_Q)):,} of "
        f"{len(selection.right_Q):,} questions",
        "samples": _line(selection),
        "minutes": round((time.perf_counter() - start) / 60, 1),
    }
    checks = "check=check" if any("check" in row for row in selection.rows) else None
    following = command("stages.sft", dataset=path, columns=checks, model="MODEL", output_dir="DIR")
    print_summary("distilled data", path, lines, following)
    return path


def _sample(teacher: Teacher, left: dict[int, Problem], store: SampleStore, total: int) -> None:
    with Progress(total, "distill", unit="q", initial=total - len(left)) as progress:
        for number, samples in teacher.sample(left):
            store.add(number, samples)
            progress.advance(1)


@contextmanager
def _teacher(config: DistillConfig, data: DataConfig) -> Iterator[Teacher]:
    """The teacher, loaded or connected; closed afterwards."""
    system = data.system_prompt
    if is_address(config.teacher):
        key = os.environ.get(config.api_key_env, "")
        with OpenAITeacher(config, key, system="" if system in (None, "none") else system) as api:
            if api.sends_key_unencrypted:
                print(f"warning: {config.teacher} gets the key without encryption; prefer https")
            yield api
        return
    prepare_cpu()
    model, tokenizer = load_for_inference(config.teacher, config)
    apply_prompt(tokenizer, data)
    yield LocalTeacher(model, tokenizer, config)


def _write(
    config: DistillConfig, data: DataConfig, selection: Selection, settings: dict[str, object]
) -> Path:
    """Write train.jsonl, the data card and run.json; return the path of the rows."""
    folder = Path(config.output_dir)
    path = folder / ROWS
    staged = path.with_name(f"{ROWS}.tmp")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in selection.rows)
    staged.write_text("".join(lines), encoding="utf-8", errors="replace")
    staged.replace(path)
    columns = "check=check" if any("check" in row for row in selection.rows) else None
    report = read_problems(str(path), "train", own=OwnDataConfig(columns=columns))
    card = data_card({ROWS: report}) | {"teacher": settings, "samples": figures(selection)}
    write_json(folder / "data_card.json", card)
    (folder / "README.md").write_text(card_text(settings, selection), encoding="utf-8")
    write_run_info(folder, distill=config, data=data)
    return path


def _line(selection: Selection) -> str:
    return ", ".join(f"{n:,} {fate}" for fate, n in selection.fates.items())


def _fingerprint(problems: Sequence[Problem]) -> str:
    """A hash of questions, answers and their order."""
    text = json.dumps([[p.prompt, p.answer, p.check] for p in problems])
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Distil as the command line says."""
    unused = (
        *("few_shot", "streaming", "think"),
        *("direct_share", "self_correction_share"),
    )
    run(*parse((DistillConfig, DataConfig), "", argv, without_effect=unused))


if __name__ == "__main__":
    main()
