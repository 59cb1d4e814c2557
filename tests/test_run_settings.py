"""A run resumes with the settings it was saved with; what differs is named, and refused where it
would be another run."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel

from pipeline.chat.tags import END_THINK
from pipeline.config import DataConfig, ModelConfig
from pipeline.model import build_nano, load_policy
from pipeline.model.atomic import (
    DamagedCheckpointError,
    check_manifest,
    checkpoints,
    write_manifest,
)
from pipeline.ppo.config import PPOConfig
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from pipeline.training.run_settings import FREE, LENGTH, ROUNDING, data_digest, deciding, differing
from stages import sft

ROWS = [{"input_ids": [5, 6, 7, 8 + i], "completion_mask": [0, 1, 1, 1]} for i in range(8)]
SAVED = {
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "learning_rate": 1e-3,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def make(_tiny_policy, tokenizer) -> Callable[..., ReasoningSFTTrainer]:
    def make(
        folder: Path,
        rows: list[dict] = ROWS,
        model: PreTrainedModel = _tiny_policy,
        **options: Any,
    ) -> ReasoningSFTTrainer:
        args = ReasoningSFTConfig(**{"output_dir": str(folder), **SAVED, **options})
        return ReasoningSFTTrainer(
            copy.deepcopy(model),
            args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )

    return make


@pytest.fixture(scope="module")
def saved(make, tmp_path_factory) -> Path:
    """checkpoint-1 of a run of two steps."""
    folder = tmp_path_factory.mktemp("saved")
    make(folder).train()
    return folder / "checkpoint-1"


ANOTHER_RUN = {
    "seed": 7,
    "learning_rate": 2e-3,
    "weight_decay": 0.5,
    "max_grad_norm": 3.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 5,
    "optim": "sgd",
    "adam_beta2": 0.5,
    "muon": True,
    "thought_weight": 0.5,
    "thought_mask_share": 0.2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "dataloader_drop_last": True,
    "neftune_noise_alpha": 5.0,
}


@pytest.mark.parametrize("name", ANOTHER_RUN)
def test_a_setting_that_makes_another_run_is_named_and_refused(make, saved, tmp_path, name):
    trainer = make(tmp_path / "run", **{name: ANOTHER_RUN[name]})
    with pytest.raises(DamagedCheckpointError) as refused:
        trainer.train(resume_from_checkpoint=str(saved))
    said = str(refused.value)
    shown = "sequences an optimizer step" if "batch" in name or "accumul" in name else name
    was, now = trainer._settings, check_manifest(saved)["settings"]
    assert was[shown] != now[shown]
    assert re.fullmatch(
        rf"\S+checkpoint-1 was saved with {shown}=\S+, and this run has {shown}=\S+; resume with "
        r"the settings it was saved with, or start another run from its weights: --model \S+ and a "
        "new --output_dir",
        said,
    )
    assert checkpoints(tmp_path / "run") == []


def test_all_settings_that_differ_are_named_at_once(make, saved, tmp_path):
    with pytest.raises(DamagedCheckpointError) as refused:
        make(tmp_path, seed=7, learning_rate=2e-3).train(resume_from_checkpoint=str(saved))
    was, now = str(refused.value).split(", and this run has ")
    assert "learning_rate=0.001" in was and "seed=42" in was
    assert "learning_rate=0.002" in now and "seed=7" in now


@pytest.mark.parametrize(
    "rows", [ROWS[::-1], ROWS[:4], [*ROWS[:7], ROWS[0]]], ids=["order", "fewer", "one"]
)
def test_other_rows_are_another_run(make, saved, tmp_path, rows):
    with pytest.raises(DamagedCheckpointError, match=r"saved with training data=\w{16}, and this"):
        make(tmp_path, rows).train(resume_from_checkpoint=str(saved))


THE_SAME_RUN = {
    "other places and figures": {
        "run_name": "b",
        "save_steps": 2,
        "save_total_limit": 3,
        "logging_steps": 1,
        "per_device_eval_batch_size": 3,
        "hub_model_id": "user/b",
        "dataloader_num_workers": 0,
    },
    "the same batch in smaller parts": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
}


@pytest.mark.parametrize("kind", THE_SAME_RUN)
def test_what_does_not_touch_the_mathematics_may_differ(make, saved, tmp_path, capsys, kind):
    trainer = make(tmp_path, **THE_SAME_RUN[kind])
    trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.state.global_step == 2
    assert "saved with" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_steps": 3}, "max_steps=2, resumed with max_steps=3: the run goes on, and its learn"),
        (
            {"gradient_checkpointing": True},
            "gradient_checkpointing=False, resumed with gradient_checkpointing=True: the run goes "
            "on, but does not end bit for bit",
        ),
    ],
)
def test_a_longer_run_and_other_rounding_go_on_and_are_mentioned(
    make, saved, tmp_path, capsys, change, message
):
    trainer = make(tmp_path, **change)
    trainer.train(resume_from_checkpoint=str(saved))
    assert f"saved with {message}" in capsys.readouterr().out
    assert trainer.state.global_step == trainer.args.max_steps


# ---- what the settings do not tell ----


def without_settings(folder: Path) -> None:
    facts = check_manifest(folder)
    del facts["settings"]
    write_manifest(folder, **facts)


@pytest.mark.parametrize("muon", [False, True])
def test_the_state_of_another_optimizer_is_refused_in_one_line(make, tmp_path, capsys, muon):
    make(tmp_path, muon=muon, max_steps=1).train()
    without_settings(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="holds the state of another optimizer") as refused:
        make(tmp_path, muon=not muon).train(resume_from_checkpoint="last")
    assert "\n" not in str(refused.value)
    assert "names no settings, so they are not compared" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_hidden_layers": 1}, r"differ in \d+ weights, the first model\.layers\.1"),
        ({"num_hidden_layers": 3}, r"differ in \d+ weights, the first model\.layers\.2"),
        ({"hidden_size": 16}, "holds weights of another model than this run has .*size mismatch"),
    ],
)
def test_a_model_of_another_shape_does_not_take_the_weights(
    make, saved, tmp_path, tokenizer, shape, message
):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    model = build_nano(tokenizer, num_attention_heads=2, **(sizes | shape))
    with pytest.raises(ValueError, match=message) as refused:
        make(tmp_path, model=model).train(resume_from_checkpoint=str(saved))
    assert "\n" not in str(refused.value)


# ---- PPO, and the lists ----


def ppo(**options: Any) -> dict[str, Any]:
    args = PPOConfig(output_dir="out", **options)
    return deciding(args, 1, None, {})


@pytest.mark.parametrize(
    "change",
    [
        {"kl_coef": 0.2},
        {"clip": 0.1},
        {"gamma": 0.9},
        {"lam": 0.5},
        {"ppo_epochs": 3},
        {"num_minibatches": 1},
        {"temperature": 0.5},
        {"max_completion_length": 77},
        {"completions_per_question": 16},
        {"value_coef": 0.1},
        {"curriculum": True},
        {"supervised_coef": 0.1},
    ],
    ids=str,
)
def test_every_number_of_ppo_decides(change):
    assert set(change) <= set(differing(ppo(), ppo(**change))[0])


@pytest.mark.parametrize(
    "change",
    [{"save_every": 3}, {"log_samples": 4}, {"alarms": "stop"}, {"alarm_kl": 9.0}],
    ids=str,
)
def test_what_ppo_logs_and_saves_decides_nothing(change):
    assert differing(ppo(), ppo(**change)) == ([], [])


def test_a_micro_batch_is_a_matter_of_rounding():
    names, said = differing(ppo(), ppo(micro_batch_size=2))
    assert names == [] and len(said) == 1 and "micro_batch_size=2" in said[0]


def test_the_lists_name_fields_that_there_are():
    classes = (PPOConfig, ReasoningSFTConfig, ModelConfig, DataConfig)
    known = {field.name for cls in classes for field in fields(cls)}
    assert (FREE | ROUNDING | LENGTH) - known == set()
    assert not FREE & ROUNDING and not FREE & LENGTH and not ROUNDING & LENGTH


def test_a_digest_is_of_the_rows_and_not_of_how_they_are_kept():
    rows = [
        {"ids": list(range(i % 7)), "text": str(i), "n": None if i % 5 else i} for i in range(3000)
    ]
    whole = Dataset.from_list(rows)
    parts = concatenate_datasets([Dataset.from_list(rows[:1700]), Dataset.from_list(rows[1700:])])
    picked = Dataset.from_list(rows[::-1]).select(range(2999, -1, -1))
    assert len({data_digest(d) for d in (whole, parts, picked)}) == 1
    other = [*rows[:-1], rows[-1] | {"text": "x"}]
    assert data_digest(Dataset.from_list(other)) != data_digest(whole)
    assert data_digest(whole.to_iterable_dataset()) is None


# ---- the command ----

NANO = """
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 64
nano_vocab_size: 300
shares: wording=1
size: 8
max_steps: 2
save_steps: 1
per_device_train_batch_size: 4
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def command(tmp_path_factory, threads) -> list[str]:
    """The command of a run that has saved two checkpoints."""
    home = tmp_path_factory.mktemp("command")
    (home / "sft.yaml").write_text(NANO)
    arguments = ["--config", f"{home}/sft.yaml", "--output_dir", f"{home}/out"]
    sft.main(arguments)
    return arguments


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--shares", "story1=1"], "training data="),
        (["--size", "12"], "training data="),
        (["--seed", "7"], "seed=42"),
        (["--learning_rate", "0.5"], "learning_rate="),
        (["--muon", "true"], "muon=False"),
        (["--nano_layers", "2"], "nano_layers=1"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_the_command_refuses_in_one_line_with_exit_code_two(command, capsys, change, named):
    checkpoint = f"{command[-1]}/checkpoint-1"
    with pytest.raises(SystemExit) as left:
        sft.main([*command, *change, "--resume_from_checkpoint", checkpoint])
    assert left.value.code == 2
    error = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert error.startswith(f"error: {checkpoint} was saved with ") and named in error
    assert f"--model {checkpoint} and a new --output_dir" in error


def test_another_run_starts_from_the_weights_as_the_refusal_says(command, tmp_path):
    checkpoint = f"{command[-1]}/checkpoint-1"
    options = ["--model", checkpoint, "--output_dir", str(tmp_path / "new"), "--seed", "7"]
    sft.main([*command[:2], *options, "--learning_rate", "1e-12"])
    (begun, tokenizer), (ended, _) = (
        load_policy(checkpoint, value_head="new"),
        load_policy(tmp_path / "new"),
    )
    kept = torch.arange(len(tokenizer)) != tokenizer.convert_tokens_to_ids(END_THINK)
    # The row of </think> is fitted before training, since one step has hardly taught it.
    begun_VD, ended_VD = begun.lm_head.weight[: len(kept)], ended.lm_head.weight[: len(kept)]
    torch.testing.assert_close(ended_VD[kept], begun_VD[kept], atol=1e-6, rtol=0)
