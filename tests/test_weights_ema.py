"""The average of the weights: its value, its place in evaluation, and supervised steps between."""

import pytest
import torch
from datasets import Dataset
from torch import nn

from pipeline.chat.prompts import user_message
from pipeline.chat.tags import END_THINK
from pipeline.data.arithmetic_problems import make_arithmetic_problems
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import load_policy, save_policy
from pipeline.ppo.ema import WeightsEMA
from pipeline.ppo.supervised import SupervisedPart
from pipeline.scoring import score_rows
from tests.test_supervised import train

PROBLEMS = make_arithmetic_problems({"wording": 1, "story2": 1}, size=10, seed=0)


def test_the_average_is_the_weighted_sum_of_all_weights_so_far():
    weight = nn.Parameter(torch.tensor([8.0]))
    ema = WeightsEMA([("w", weight)], decay=0.5)
    for value in (0.0, 4.0):
        weight.data.fill_(value)
        ema.update()
    assert ema.state_dict()["w"].tolist() == [4.0]  # 8 / 4 + 0 / 4 + 4 / 2


def test_the_average_is_applied_inside_a_context_also_after_an_error():
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = WeightsEMA([("w", weight)], decay=0.5)
    weight.data.fill_(3.0)
    with pytest.raises(KeyError), ema.applied():
        assert weight.item() == 1.0
        raise KeyError
    assert weight.item() == 3.0


def test_weights_that_are_not_trained_have_no_average():
    frozen, trained = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    ema = WeightsEMA([("a", frozen), ("b", trained)], decay=0.5)
    assert list(ema.state_dict()) == ["b"]
    with pytest.raises(ValueError, match="resume with the model it was saved with"):
        ema.load_state_dict({"a": torch.ones(1)})


def test_an_evaluation_measures_the_policy_and_the_average(make_ppo, tiny_policy, tokenizer):
    seen = []

    def reward(completions, **columns):
        seen.append(next(iter(tiny_policy.parameters())).detach().clone())
        return [1.0] * len(completions)

    rows = Dataset.from_list([{"prompt": user_message("What is 1 + 1?")}])
    trainer = make_ppo(
        tiny_policy, reward, ema_decay=0.5, learning_rate=1e-2, num_rollouts=2,
        own={"eval_dataset": rows}, per_device_eval_batch_size=1,
    )  # fmt: skip
    trainer.train()
    seen.clear()
    metrics = trainer.evaluate()
    logged = trainer.state.log_history
    own = next(iter(tiny_policy.parameters()))
    assert torch.equal(seen[0], own) and not torch.equal(seen[1], own)
    assert metrics.keys() >= {"eval_loss", "eval_ema_loss"}
    assert any("eval_reward" in row for row in logged)
    assert any("eval_ema/reward" in row and "eval_reward" not in row for row in logged)


# ---- a supervised step, then a PPO step ----


@pytest.fixture
def rows(tokenizer) -> Dataset:
    return sft_dataset(tokenizer, PROBLEMS, progress=False)[0]


def test_alternate_steps_come_after_each_rollout(rows, tokenizer, tiny_policy, tmp_path):
    options = {"supervised_coef": 1.0, "supervised_mode": "alternate", "supervised_steps": 3}
    log = train(tiny_policy, tokenizer, tmp_path, rows, **options)
    losses = [row["loss/supervised"] for row in log if "loss/supervised" in row]
    assert len(losses) == 2 and losses[1] < losses[0]  # a mean of three steps in each row


def test_without_a_policy_gradient_alternate_steps_are_those_of_sft(
    rows, tokenizer, tiny_policy, tmp_path
):
    """SGD without momentum: a PPO step without a gradient changes nothing."""
    save_policy(tiny_policy, tokenizer, tmp_path / "start")
    options = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trained, _ = load_policy(tmp_path / "start", value_head="new")  # V is 0, as all rewards
    alternate = {"supervised_coef": 2.0, "supervised_mode": "alternate", "supervised_steps": 2}
    train(trained, tokenizer, tmp_path / "ppo", rows, **options, **alternate)
    by_hand, _ = load_policy(tmp_path / "start", value_head="new")
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    part = SupervisedPart(rows, batch_size=3, end_think_id=end_think_id, seed=42 * 1000)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1e-2)
    for index in range(4):
        batch = part.batch(index)
        (2.0 * part.loss(score_rows(by_hand, *batch), *batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for mine, expected in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
