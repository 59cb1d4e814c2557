"""Worked solutions that join a PPO update."""

import copy
import random
from collections import Counter
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from pipeline.chat.prompts import user_message
from pipeline.chat.tags import END_THINK
from pipeline.data.arithmetic_problems import make_arithmetic_problems
from pipeline.data.sft_examples import sft_dataset
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.supervised import SupervisedPart
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.scoring import score_rows
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer

PROBLEMS = make_arithmetic_problems({"wording": 1, "story2": 1}, size=10, seed=0)


@pytest.fixture(scope="module")
def rows(tokenizer) -> Dataset:
    return sft_dataset(tokenizer, PROBLEMS, progress=False)[0]


@pytest.fixture
def part(rows, tokenizer) -> SupervisedPart:
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    return SupervisedPart(rows, batch_size=3, end_think_id=end_think_id, seed=0)


def train(policy: nn.Module, tokenizer: Any, folder: Any, rows: Any, **options: Any) -> list[dict]:
    """PPO that pays nothing, with value head and entropy out of the way; its log."""
    args = PPOConfig(
        output_dir=str(folder),
        num_rollouts=2,
        questions_per_rollout=2,
        completions_per_question=2,
        ppo_epochs=1,
        num_minibatches=1,
        max_completion_length=4,
        supervised_batch_size=3,
        disable_tqdm=True,
        **{"kl_coef": 0, "value_coef": 0, "entropy_coef": 0, "learning_rate": 1e-2, **options},
    )
    trainer = ReasoningPPOTrainer(
        policy,
        [lambda completions, **columns: [0.0] * len(completions)],
        args,
        supervised=rows,
        train_dataset=Dataset.from_list([{"prompt": user_message(p.question)} for p in PROBLEMS]),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.state.log_history


def test_the_rows_are_shuffled_once_a_pass(part, monkeypatch):
    made, plain = [], random.Random
    monkeypatch.setattr(random, "Random", lambda seed: made.append(seed) or plain(seed))
    for step in range(6):  # ten rows in batches of three: three steps a pass
        part.batch(step)
    assert made == ["0/0", "0/1"]


def test_the_loss_is_that_of_the_sft_stage(part, rows, tokenizer, tiny_policy, tmp_path):
    args = ReasoningSFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=3,
        train_sampling_strategy="sequential",
    )
    trainer = ReasoningSFTTrainer(
        tiny_policy, args, train_dataset=rows.select(part._indices(1)), processing_class=tokenizer
    )
    expected = trainer.compute_loss(tiny_policy, next(iter(trainer.get_train_dataloader())))
    ids_BT, mask_BT = part.batch(1)
    found = part.loss(score_rows(tiny_policy, ids_BT, mask_BT), ids_BT, mask_BT)
    torch.testing.assert_close(found, expected)


def test_every_example_comes_once_before_any_comes_twice(part):
    first = Counter(index for step in range(3) for index in part._indices(step))
    second = Counter(index for step in range(3, 6) for index in part._indices(step))
    assert max(first.values()) == max(second.values()) == 1  # 9 of 10; 3 do not divide 10
    assert [part._indices(step) for step in range(3)] != [part._indices(s) for s in range(3, 6)]
    assert part._indices(4) == part._indices(4)


def test_too_few_worked_solutions_are_refused(rows):
    with pytest.raises(ValueError, match="10 worked solutions are fewer than supervised_batch_"):
        SupervisedPart(rows, batch_size=11, end_think_id=1, seed=0)


def test_the_supervised_loss_joins_the_update(rows, tokenizer, tiny_policy, tmp_path):
    weights = {}
    for coefficient in (0.0, 1.0):
        policy = copy.deepcopy(tiny_policy)
        log = train(policy, tokenizer, tmp_path, rows, supervised_coef=coefficient)
        losses = [row["loss/supervised"] for row in log if "loss/supervised" in row]
        assert len(losses) == (2 if coefficient else 0)
        weights[coefficient] = policy.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weights[0.0], weights[1.0])


def test_it_joins_once_a_step_however_many_micro_batches(rows, tokenizer, tiny_policy, tmp_path):
    trained = []
    for micro in (4, 1):
        policy = copy.deepcopy(tiny_policy)
        train(
            policy,
            tokenizer,
            tmp_path,
            rows,
            supervised_coef=0.5,
            micro_batch_size=micro,
            optim="sgd",
            learning_rate=0.1,
        )
        trained.append(policy.lm_head.weight)
    torch.testing.assert_close(*trained, atol=1e-6, rtol=0)


def test_it_waits_while_the_value_head_warms_up(rows, tokenizer, tiny_policy, tmp_path):
    before = tiny_policy.lm_head.weight.detach().clone()
    train(tiny_policy, tokenizer, tmp_path, rows, supervised_coef=1.0, value_warmup=2)
    assert torch.equal(tiny_policy.lm_head.weight, before)


def test_without_worked_solutions_it_is_refused(tokenizer, tiny_policy, tmp_path):
    with pytest.raises(ValueError, match=r"supervised_coef=1\.0 needs worked solutions"):
        train(tiny_policy, tokenizer, tmp_path, None, supervised_coef=1.0)
