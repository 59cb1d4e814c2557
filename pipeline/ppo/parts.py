"""The parts of PPO that its options choose; each is None where the options leave it out."""

from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK
from pipeline.ppo.curriculum import LevelCurriculum
from pipeline.ppo.monte_carlo import Continue, MonteCarloValues, Score
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.replay import ReplayBuffer
from pipeline.ppo.rollout import StepRewards
from pipeline.ppo.supervised import SupervisedPart
from pipeline.ppo.target_kl import TargetKL
from pipeline.ppo.value_model import ValueModel
from pipeline.ppo.values import NoValues, ValueSource, VerifierValues
from pipeline.records import Problem
from pipeline.training.alarms import AlarmCallback, Thresholds
from pipeline.verifier.online import OnlineVerifier, attach_new_verifier


def turn_off_dropout(policy: nn.Module) -> None:
    """Set the rates that modules keep as numbers to 0: OPT and XGLM call dropout as a function.

    TRL turns off modules of dropout alone.
    """
    for module in policy.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def make_target_kl(options: PPOOptions) -> TargetKL | None:
    """Return the rule of `target_kl`."""
    if options.target_kl is None:
        return None
    return TargetKL(options.target_kl, minibatches=options.num_minibatches)


def make_curriculum(options: PPOOptions, dataset: Dataset, seed: int) -> LevelCurriculum | None:
    """Return the curriculum over the column `level` of the data."""
    if not options.curriculum:
        return None
    levels = [str(level) for level in dataset["level"]]
    decay, floor = options.curriculum_decay, options.curriculum_floor
    return LevelCurriculum(levels, seed=seed, decay=decay, floor=floor)


def make_replay(options: PPOOptions) -> ReplayBuffer | None:
    """Return the store of groups of `zero_variance_groups: replay`."""
    if options.zero_variance_groups != "replay":
        return None
    return ReplayBuffer(
        group=options.completions_per_question,
        size=options.replay_size,
        age=options.replay_age,
        success=options.replay_success,
        right_outcome=options.right_outcome,
    )


def make_online_verifier(
    options: PPOOptions,
    policy: nn.Module,
    seed: int,
    average: Callable[[torch.Tensor], torch.Tensor],
) -> OnlineVerifier | None:
    """Attach a new verifier to the policy and return its training.

    `average` is the mean of a tensor over all processes.
    """
    if not options.verifier:
        return None
    return OnlineVerifier(
        attach_new_verifier(policy, seed=seed),
        learning_rate=options.verifier_learning_rate,
        steps=options.verifier_steps,
        average=average,
    )


def make_supervised(
    options: PPOOptions,
    rows: Sequence[Mapping[str, list[int]]] | None,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> SupervisedPart | None:
    """Return the loss on worked solutions; `seed` is that of a process."""
    if not options.supervised_coef or rows is None:
        return None
    return SupervisedPart(
        rows,
        batch_size=options.supervised_batch_size,
        end_think_id=tokenizer.convert_tokens_to_ids(END_THINK),
        seed=seed,
    )


def make_value_source(
    options: PPOOptions,
    *,
    verifier: OnlineVerifier | None,
    model: ValueModel | None,
    go_on: Continue,
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    accelerator: Accelerator,
    seed: int,
    problems: Sequence[Problem],
    step_rewards: StepRewards | None,
) -> ValueSource | None:
    """Return the source of V for the advantages; None: the value head.

    Args:
        go_on: as `MonteCarloValues` describes it.
        score: as `MonteCarloValues` describes it.
        end_ids: tokens that end a completion.
    """
    if options.value_source == "none":
        return NoValues()
    if options.value_source == "verifier":
        assert verifier is not None  # check_options
        return VerifierValues(verifier, options.right_outcome)
    if options.value_source == "model":
        return model
    if options.value_source == "monte_carlo":
        return MonteCarloValues(
            samples=options.monte_carlo_samples,
            group=options.completions_per_question,
            budget=options.max_completion_length,
            go_on=go_on,
            score=score,
            tokenizer=tokenizer,
            end_ids=end_ids,
            accelerator=accelerator,
            seed=seed,
            problems=problems,
            step_rewards=step_rewards,
        )
    return None


def make_alarms(options: PPOOptions) -> AlarmCallback | None:
    """Return the callback that watches the log."""
    if options.alarms == "off":
        return None
    thresholds = Thresholds(
        patience=options.alarm_patience,
        kl=options.alarm_kl,
        entropy=options.alarm_entropy,
        length=options.alarm_length,
    )
    return AlarmCallback(thresholds, stop=options.alarms == "stop")
