"""Advantage estimators by name, and the training batches that PPO would make of given samples."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.cli import CommandParser
from pipeline.config import DataConfig, ModelConfig, RewardConfig
from pipeline.generation.shared_prefix import PrefixEngine
from pipeline.ppo.collector import RolloutCollector
from pipeline.ppo.kl import FixedKL
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.monte_carlo import MonteCarloValues, continuations
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.rollout import (
    Row,
    per_completion,
    reward_parts,
    score_rollout,
    weighted_outcomes,
)
from pipeline.ppo.values import CrossFittedVerifier, ValueSource
from pipeline.records import Problem, Rollout
from pipeline.rewards import Rubric
from pipeline.scoring import Scores, score_completions
from pipeline.training.nonfinite import NonfiniteCheck


@dataclass(frozen=True)
class Estimator:
    """Rewards and options of PPO, of which those of rewards and advantages have an effect here."""

    rewards: Mapping[str, float]
    options: PPOOptions


ANSWER, STEPS = {"correctness": 1.0}, {"steps": 1.0}
_RLOO = PPOOptions(lam=1.0, rloo_baseline=True)
_STEP_CREDIT = PPOOptions(lam=1.0, step_lam=0.0)
_VERIFIER = PPOOptions(verifier=True, value_source="verifier")
_VINE = replace(_STEP_CREDIT, value_source="monte_carlo")
# The step rewards of a completion add up to 1 where it is right and to -1 where it is wrong, less
# small penalties: steps differ from answers in the places of the rewards.
ESTIMATORS = {
    "gae": Estimator(ANSWER, PPOOptions()),
    "monte_carlo": Estimator(ANSWER, PPOOptions(lam=1.0)),
    "rloo": Estimator(ANSWER, _RLOO),
    "rloo_group": Estimator(ANSWER, replace(_RLOO, normalize_advantages="group")),
    "rloo_plain": Estimator(ANSWER, replace(_RLOO, normalize_advantages="none")),
    "rloo_entropy": Estimator(ANSWER, replace(_RLOO, policy_token_share=0.2)),
    "verifier": Estimator(ANSWER, _VERIFIER),
    "verifier_low": Estimator(ANSWER, replace(_VERIFIER, lam=0.8)),
    "vine": Estimator(ANSWER, _VINE),
    "vine_plain": Estimator(ANSWER, replace(_VINE, normalize_advantages="none")),
    "steps_rloo": Estimator(STEPS, _RLOO),
    "steps_alone": Estimator(STEPS, _STEP_CREDIT),
    "steps_plain": Estimator(STEPS, replace(_STEP_CREDIT, normalize_advantages="none")),
}


@dataclass(frozen=True)
class Sampling:
    """The policy that sampled a rollout, for estimators that sample on or score its tokens."""

    model: PreTrainedModel
    temperature: float
    max_completion_length: int
    seed: int


def recipe_estimator(path: str) -> Estimator:
    """Return the estimator of a configuration of `stages.ppo`, such as configs/nano/ppo.yaml.

    Raises:
        ValueError: the configuration is not valid.
    """
    from pipeline.ppo.config import PPOConfig  # imports TRL

    classes = [ModelConfig, DataConfig, RewardConfig, PPOConfig]
    parser = CommandParser(classes, presets="configs/presets")
    _, _, reward, args = parser.parse_args_and_config(["--config", path])
    values: dict[str, Any] = {field.name: getattr(args, field.name) for field in fields(PPOOptions)}
    return Estimator(reward.weights(), PPOOptions(**values))


def estimator_batch(
    estimator: Estimator,
    rollout: Rollout,
    problems_Q: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    sampling: Sampling | None = None,
) -> tuple[Batch, dict[str, float]]:
    """Return (training batch, metrics) that PPO makes of a rollout with these rewards and options.

    `mean_reward` in the metrics is the mean of outcome and steps over the completions.
    The KL penalty is 0, as in the first update of a run. Questions are not replaced by others:
    zero_variance_groups=resample leaves them out, as skip does. The verifier of
    value_source=verifier is fitted to the other half of the questions.

    Args:
        sampling: needed by value_source=monte_carlo and by policy_token_share below 1.
    """
    group = len(rollout.truncated_B) // len(problems_Q)
    skips = estimator.options.zero_variance_groups != "keep"
    options = replace(
        estimator.options,
        questions_per_rollout=len(problems_Q),
        completions_per_question=group,
        kl_coef=0.0,
        kl_controller="fixed",
        zero_variance_groups="skip" if skips else "keep",
    )
    rubric = Rubric(estimator.rewards)
    problems = list(problems_Q)

    def score(
        rows_B: list[Row], texts: list[str], ids: list[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        functions, device = rubric.functions(), rollout.values_BC.device
        if not functions:  # steps alone
            return torch.zeros(len(texts), device=device), torch.zeros(len(texts), 0)
        problems_B = [problems[row["problem"]] for row in rows_B]
        parts_BF = reward_parts(functions, problems_B, texts).to(device)
        return weighted_outcomes(parts_BF, torch.tensor(rubric.weights_list())), parts_BF

    def no_reference(rollout: Rollout) -> Scores:
        raise AssertionError("kl_coef is 0")

    def go_on(
        prompts: Sequence[list[int]], budgets: Sequence[int], samples: int, seed: int
    ) -> list[list[int]]:
        assert sampling is not None, "value_source=monte_carlo samples"
        engine = PrefixEngine(sampling.model, tokenizer, batch_size=256)
        return continuations(
            engine, prompts, budgets, samples, seed, temperature=sampling.temperature
        )

    def policy_scores(rollout: Rollout) -> Scores:
        assert sampling is not None, "policy_token_share below 1 scores the tokens"
        score = partial(score_completions, sampling.model, temperature=sampling.temperature)
        return score_rollout(score, rollout)

    accelerator = Accelerator()
    values: ValueSource | None = None
    if options.value_source == "verifier":
        values = CrossFittedVerifier(tokenizer, group, options.right_outcome)
    elif options.value_source == "monte_carlo":
        assert sampling is not None, "value_source=monte_carlo samples"
        values = MonteCarloValues(
            samples=options.monte_carlo_samples,
            group=group,
            budget=sampling.max_completion_length,
            go_on=go_on,
            score=score,
            tokenizer=tokenizer,
            end_ids=end_ids,
            accelerator=accelerator,
            seed=sampling.seed,
            problems=problems,
            step_rewards=rubric.step_function(),
        )
    rows = [{"problem": index} for index in range(len(problems))]
    collector = RolloutCollector(
        options=options,
        tokenizer=tokenizer,
        sample=lambda questions, group, generator: rollout,
        score=score,
        reference=no_reference,
        accelerator=accelerator,
        seed=0,
        dataset=Dataset.from_list(rows),
        end_ids=end_ids,
        kl=FixedKL(0.0),
        nonfinite=NonfiniteCheck(accelerator),
        problems=problems,
        step_rewards=rubric.step_function(),
        values=values,
        policy_scores=policy_scores,
    )
    log = PPOLog(defaultdict(list), accelerator)
    batch, samples = collector.collect(per_completion(rows, group), 0, log)
    mean_reward = samples.scored.totals().nanmean().item()
    logged = {name: values[-1] for name, values in log.metrics.items()}
    return batch, logged | {"mean_reward": mean_reward}
