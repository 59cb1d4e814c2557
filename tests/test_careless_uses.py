"""Mistakes that users make: one line with a remedy, exit code 2, and nothing is lost or made."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from pipeline.model import save_policy
from stages import __main__ as thinkhead

SFT = "stages.sft --shares wording=1 --size 16 --max_steps 1 --output_dir OUT"
PPO = (
    "stages.ppo --model MODEL --shares wording=1 --size 8 --num_rollouts 1 --output_dir OUT "
    "--questions_per_rollout 2 --completions_per_question 2 --num_minibatches 1"
)
EVAL = "eval.run --checkpoint MODEL --suite nano --output_dir OUT"
PRETRAIN = "stages.pretrain --shares wording=1 --size 16 --max_steps 1 --output_dir OUT"
# (command, what the line must say). OUT does not exist; MODEL is a checkpoint, RUN a finished run.
USES = [
    (f"{SFT} --model no/such", "no/such is no folder here"),
    (f"{SFT} --model EMPTY", "has no config.json, so it is no checkpoint folder"),
    (f"{SFT} --model UNFINISHED", "holds an unfinished training; run its command again"),
    (f"{SFT} --dataset_split test", "dataset_split=test is for your own data, and dataset=nano"),
    (f"{SFT} --columns question=q", "columns=question=q is for your own data, and dataset=nano"),
    (f"{SFT} --report_to wandbb", "report_to=wandbb cannot be used"),
    (f"{SFT} --deepspeed zero2.json", "deepspeed"),
    (f"{SFT} --use_liger_kernel true", "needs the package liger_kernel, which is not installed"),
    (f"{SFT} --per_device_train_batch_size 0", "per_device_train_batch_size=0 must be at least 1"),
    (f"{SFT} --max_length 0", "max_length=0 must be at least 1"),
    (f"{SFT} --learning_rate -1", "learning_rate=-1.0 must be above 0"),
    (f"{SFT} --learning_rate 1e-5x", "invalid float value: '1e-5x'"),
    (f"{SFT} --optim adamw8bit", "adamw8bit"),
    (f"{SFT} --lr_scheduler_type cosin", "cosin"),
    (f"{SFT} --bf16 true --fp16 true", "At most one of fp16 and bf16"),
    (f"{SFT} --output_dir FILE/out", "FILE/out: not a directory; check the path"),
    (f"{SFT} --output_dir RUN", "holds a finished run; give another --output_dir"),
    (f"{SFT} --model RUN --output_dir RUN --overwrite_output_dir true", "would be overwritten"),
    (f"{SFT} --resume_from_checkpoint last", "holds no checkpoint-N; start without it"),
    (f"{SFT} --streaming true --shares null --max_steps -1", "no length; give max_steps"),
    (f"{SFT} --config no.yaml", "--config no.yaml does not exist"),
    (f"{SFT} --config EMPTY", "EMPTY is a folder; give a YAML file in it"),
    (f"{SFT} --learnin_rate 1", "did you mean --learning_rate?"),
    (f"{SFT} --shares null --dataset gsm8kk", "did you mean 'gsm8k'?"),
    (f"{SFT} --dataset gsm8k", "are shares of nano, which is not in dataset=gsm8k; leave them out"),
    (f"{SFT} --shares null --dataset TEXT", "is known to have a question; it has: text"),
    (f"{PRETRAIN} --lr_scheduler_type warmup_stable_decay", "give lr_scheduler_kwargs="),
    (f"{PRETRAIN} --lr_scheduler_type cosin", "cosin"),
    (f"{PRETRAIN} --max_length 1", "max_length=1 must be at least 2"),
    (f"{PRETRAIN} --max_length 5000 --held_out_share 0.5", "max_length=5000 must be at most 4096"),
    (f"{PRETRAIN} --held_out_share 1", "held_out_share=1.0 must lie in [0, 1)"),
    (f"{PRETRAIN} --model MODEL --use_peft true", "use_peft=true trains few weights"),
    (f"{PRETRAIN} --few_shot 3", "few_shot is part of a prompt"),
    (f"{PRETRAIN} --streaming true --shares null --max_steps -1", "no length; give max_steps"),
    (f"{PRETRAIN} --shares null --dataset FILE.txt", "FILE.txt does not exist"),
    (f"{PRETRAIN} --shares null --dataset TEXT --columns text=body", "no column 'body'"),
    (f"{PRETRAIN} --output_dir RUN", "holds a finished run; give another --output_dir"),
    ("stages.ppo --model nano --output_dir OUT", "PPO starts from an SFT checkpoint"),
    (f"{PPO} --use_vllm true", "needs the package vllm, which is not installed"),
    (f"{PPO} --think false", "think=false trains on answers alone, which is SFT"),
    (f"{PPO} --use_peft true --lora_dropout 0.1", "lora_dropout=0.1 does nothing in PPO"),
    (f"{PPO} --streaming true", "streaming"),
    (f"{PPO} --micro_batch_size 0", "micro_batch_size=0 must be at least 1"),
    (f"{PPO} --rewards nosuch=1", "reward 'nosuch' is not one of"),
    (f"{PPO} --rewards no_module:fun=1", "no_module"),
    (f"{PPO} --preset vapoo", "preset 'vapoo' is not one of"),
    (f"{PPO} --output_dir RUN", "holds a finished run; give another --output_dir"),
    (f"{PPO} --resume_from_checkpoint no/such", "is no folder; give a checkpoint-N, or last"),
    (f"{EVAL} --suite nanoo", "did you mean 'nano'?"),
    (f"{EVAL} --strategy consensu", "consensu"),
    (f"{EVAL} --limit 0", "limit=0 must be at least 1"),
    (f"{EVAL} --checkpoint no/such", "no/such is no folder here"),
    (
        f"{EVAL} --output_dir RUN --limit 1 --max_completion_tokens 8",
        "holds a finished run; give another --output_dir",
    ),
    ("eval.run --suite nano --output_dir OUT", "--checkpoint is missing"),
    ("eval.compare --runs RUN --output OUT/r.md", "must read NAME=DIR,NAME=DIR"),
    ("eval.compare --runs a=EMPTY --output OUT/r.md", "holds no metrics.json"),
    ("eval.report_page.page --runs a=EMPTY --output OUT/p.html", "holds no metrics.json"),
    ("eval.codeforces --verdicts no.jsonl", "no.jsonl: no such file or directory"),
    ("eval.codeforces --verdicts FILE", "line 1 is no problem with verdicts"),
    ("eval.suites --data_root no/such", "data_root='no/such' is not a folder"),
    ("stages.infer --checkpoint MODEL --question ''", "--question is missing"),
    ("stages.chat --checkpoint no/such", "no/such is no folder here"),
    ("stages.data --names nosuch --output_dir OUT", "unknown data set 'nosuch'"),
    ("stages.publish --checkpoint EMPTY --repo_id a/b --dry_run true", "no weights"),
    ("stages.recipe --config_dir EMPTY --output_dir OUT", "has no sft.yaml"),
    ("stages.recipe --output_dir RUN", "holds a finished run; give another --output_dir"),
    ("stages.recipe --output_dir HELD", "that this recipe did not make; give another"),
    (
        f"{SFT} --few_shot TALK",
        "example 1 has the system message 'Add.', and a prompt has only one",
    ),
    ("stages.__main__ recipee", "did you mean recipe?"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("careless")
    places = {name: folder / name for name in ("OUT", "MODEL", "RUN", "EMPTY", "UNFINISHED")}
    for name in ("RUN", "EMPTY", "UNFINISHED/checkpoint-5"):
        (folder / name).mkdir(parents=True)
    for run in ("RUN", "HELD/sft"):
        (folder / run).mkdir(parents=True, exist_ok=True)
        (folder / run / "run.json").write_text("{}")
    places["HELD"] = folder / "HELD"
    places["TALK"] = folder / "talk.jsonl"
    speakers = {"system": "Add.", "user": "1+1?", "assistant": "1+1=2\n#### 2"}
    talk = [{"role": role, "content": text} for role, text in speakers.items()]
    places["TALK"].write_text(json.dumps({"messages": talk}) + "\n")
    places["TEXT"] = folder / "TEXT.txt"
    places["TEXT"].write_text("One text.\n\nAnother.\n")
    places["FILE"] = folder / "FILE"
    places["FILE"].write_text("{no JSON\n")
    return places


@pytest.fixture
def model(places, _tiny_policy, tokenizer) -> None:
    if not places["MODEL"].exists():
        save_policy(_tiny_policy, tokenizer, places["MODEL"])
        (places["RUN"] / "config.json").write_text((places["MODEL"] / "config.json").read_text())


def _contents(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("use", "message"), USES, ids=[use for use, _ in USES])
def test_a_careless_use_is_one_line_with_exit_code_two(
    places, model, use, message, capsys, monkeypatch, tmp_path
):
    module, *words = use.split()
    for name, path in places.items():
        words = [word.replace(name, str(path)) for word in words]
    words = ["" if word == "''" else word for word in words]
    monkeypatch.chdir(tmp_path)
    before, threads = _contents(places["RUN"].parent), torch.get_num_threads()
    script = importlib.import_module(module)
    with pytest.raises(SystemExit) as stopped:
        (script.command if module == "stages.data" else script.main)(words)
    torch.set_num_threads(threads)
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2
    assert len(errors) == 1 and message in errors[0], said
    assert "Traceback" not in said and "[Errno" not in said
    assert _contents(places["RUN"].parent) == before and not places["OUT"].exists()
    assert list(tmp_path.iterdir()) == []


def test_null_and_an_empty_text_leave_a_field_out():
    from pipeline.cli import CommandParser
    from pipeline.config import DataConfig

    for value in ("null", ""):
        words = ["--dataset", "gsm8k", "--shares", value, "--size", value]
        (data,) = CommandParser([DataConfig]).parse_args_and_config(words)
        assert (data.shares, data.size) == (None, None)


def test_a_log_in_lines_and_a_folder_are_read_as_the_state_of_a_trainer(tmp_path):
    from eval.report_page.curves import read_log_history

    rows = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_log_history(tmp_path / "log.jsonl") == read_log_history(tmp_path) == rows
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": rows[:1]}))
    assert read_log_history(tmp_path) == rows[:1]
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="is no training log"):
        read_log_history(tmp_path / "x.json")


def test_the_command_thinkhead_without_a_name_lists_the_commands(capsys):
    thinkhead.main([])
    assert "recipe" in capsys.readouterr().out
