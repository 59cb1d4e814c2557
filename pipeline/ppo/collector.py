"""One rollout from questions to the training batch: draw, sample, score, select, estimate."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import Question, question_text
from pipeline.chat.tags import END_THINK
from pipeline.chat.token_offsets import step_end_ids
from pipeline.ppo.batch import training_batch, without_tokens
from pipeline.ppo.curriculum import LevelCurriculum, count_outcomes, draw_questions
from pipeline.ppo.groups import ScoredRollout, select_completions, zero_variance
from pipeline.ppo.kl import FixedKL
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.replay import ReplayBuffer
from pipeline.ppo.rollout import (
    Row,
    StepRewards,
    completion_texts,
    per_completion,
    question_of,
    step_reward_tokens,
    unpad,
)
from pipeline.ppo.token_weights import gather_any_length, high_entropy_mask
from pipeline.ppo.values import ValueSource
from pipeline.records import Problem, Rollout
from pipeline.scoring import Scores
from pipeline.training.determinism import seeded_generator
from pipeline.training.nonfinite import NonfiniteCheck
from pipeline.training.reward_errors import raise_together
from pipeline.verifier.online import OnlineVerifier, verifier_states

SAMPLED_TOKENS = "sampled_tokens"  # metric: tokens sampled in training by all processes


@dataclass(frozen=True)
class Samples:
    """The completions of `questions`, scored."""

    rows_B: list[Row]
    questions_B: list[str]
    texts: list[str]
    scored: ScoredRollout
    parts: torch.Tensor  # rewards by function (columns), of the completions of all processes


@dataclass(kw_only=True)
class RolloutCollector:
    """Collects rollouts with a sampler and rewards that are given as functions.

    Args:
        sample: (questions, group, generator) -> `group` completions of each question.
        score: (rows_B, texts, ids) -> (outcomes_B, reward parts of all processes).
        reference: rollout -> its scores by the reference model; called where kl_coef is above 0.
        seed: of the questions that are drawn and of the completions, with step and process.
        dataset: rows to draw from, for the curriculum and for resampled groups.
        problems: what a row's `problem` is the index into; empty where rows have a `prompt` alone.
        end_ids: tokens that end a completion.
        values: V of the policy's advantages; default: the value head's, recorded by `sample`.
        policy_scores: rollout -> its scores by the policy; called where policy_token_share is
            below 1.
    """

    options: PPOOptions
    tokenizer: PreTrainedTokenizerBase
    sample: Callable[[list[Question], int, torch.Generator], Rollout]
    score: Callable[[list[Row], list[str], list[list[int]]], tuple[torch.Tensor, torch.Tensor]]
    reference: Callable[[Rollout], Scores]
    accelerator: Accelerator
    seed: int
    dataset: Dataset
    end_ids: Sequence[int]
    kl: FixedKL
    nonfinite: NonfiniteCheck
    problems: Sequence[Problem] = ()
    step_rewards: StepRewards | None = None
    curriculum: LevelCurriculum | None = None
    replay: ReplayBuffer | None = None
    verifier: OnlineVerifier | None = None
    values: ValueSource | None = None
    policy_scores: Callable[[Rollout], Scores] | None = None
    fit_values: Callable[[ScoredRollout, torch.Tensor, int], dict[str, float]] | None = None

    def collect(self, rows_B: list[Row], step: int, log: PPOLog) -> tuple[Batch, Samples]:
        """Return (training batch, samples) for rows that come G times each.

        The metrics and the samples are those of the policy itself: of the first completions, before
        groups are resampled or completions left out. `step` is a part of the seed.
        """
        options, G = self.options, self.options.completions_per_question
        # Where processes divide a question among them, every row is sampled by itself.
        group = G if len(rows_B) % G == 0 else 1
        rows, drawn = rows_B[::group], []
        if self.curriculum is not None:
            drawn = self._draw(len(rows), "curriculum", step)
            rows = [self.dataset[index] for index in drawn]
        samples = self.sample_and_score(rows, group, "sample", step, log)
        scored = samples.scored
        self._count_tokens(scored.rollout, log)
        log.completions(scored.rollout, scored.steps)
        log.value_ranking(scored, options.right_outcome, G)
        if self.curriculum is not None:
            count_outcomes(
                self.curriculum,
                per_completion(drawn, group),
                scored.outcomes_B,
                right_outcome=options.right_outcome,
                gather=self.accelerator.gather,
            )
            log.add_all(self.curriculum.metrics())

        def resample(count: int, attempt: int) -> ScoredRollout:
            rows = [self.dataset[i] for i in self._draw(count, f"fresh/{attempt}", step)]
            fresh = self.sample_and_score(rows, G, f"resample/{attempt}", step, log).scored
            self._count_tokens(fresh.rollout, log)
            return fresh

        scored, counts_B, left_out_Q = select_completions(
            scored,
            options,
            resample,
            gather=self.accelerator.gather,
            replay=None if self.replay is None else self.replay.take,
        )
        if left_out_Q is not None:
            log.add_mean("groups/left_out", left_out_Q)
        if self.replay is not None and left_out_Q is not None:
            replayed_Q = zero_variance(samples.scored.totals(), G) & ~left_out_Q
            log.add_mean("groups/replayed", replayed_Q)
        batch = self.make_batch(scored, counts_B, log, step)
        if self.nonfinite.left_out:  # nothing is learned from this rollout, now or later
            return batch, samples
        if self.replay is not None:
            self.replay.add(samples.scored)
        if self.verifier is not None:
            # After the batch: V of the verifier is of completions that it was not fitted to.
            log.add_all(self._fit_verifier(samples.scored))
        if self.fit_values is not None:  # likewise
            log.add_all(self.fit_values(scored, counts_B, step))
        return batch, samples

    def evaluate(self, rows_B: list[Row], index: int, log: PPOLog) -> tuple[Batch, Samples]:
        """Return (batch, samples) for an evaluation's batch number `index`, with the same random
        numbers in every evaluation."""
        samples = self.sample_and_score(rows_B, 1, "sample", f"evaluation/{index}", log)
        log.completions(samples.scored.rollout, samples.scored.steps)
        log.value_ranking(samples.scored, self.options.right_outcome, 1)
        counts_B = torch.ones_like(samples.scored.outcomes_B, dtype=torch.bool)
        batch, _, _ = self._batch(samples.scored, counts_B, log, training=False)
        return batch, samples

    def sample_and_score(
        self, rows: list[Row], group: int, purpose: str, place: int | str, log: PPOLog
    ) -> Samples:
        """Return `group` scored completions of each row; `purpose` and `place` are in the seed."""
        start = time.perf_counter()
        questions = [self._question(row) for row in rows]
        generator = seeded_generator(self.seed, self.accelerator.process_index, purpose, place)
        rollout = self.sample(questions, group, generator)
        sampled = time.perf_counter()
        ids = unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
        texts = completion_texts(self.tokenizer, ids, self.end_ids)
        rows_B, steps = per_completion(rows, group), None
        outcomes_B, parts = self.score(rows_B, texts, ids)
        if self.step_rewards is not None:
            problems_B = [self.problems[row["problem"]] for row in rows_B]
            with raise_together(self.accelerator):
                found = step_reward_tokens(
                    self.step_rewards, self.tokenizer, problems_B, texts, ids
                )
            missing_B = torch.tensor([row is None for row in found], device=outcomes_B.device)
            outcomes_B = outcomes_B.masked_fill(missing_B, torch.nan)
            steps = [row or [] for row in found]
        log.add(f"time/{purpose}", sampled - start)
        log.add("time/reward", time.perf_counter() - sampled)
        return Samples(
            rows_B=rows_B,
            questions_B=per_completion([question_text(q) for q in questions], group),
            texts=texts,
            scored=ScoredRollout(rollout, outcomes_B, steps, rows_B),
            parts=parts,
        )

    def make_batch(
        self, scored: ScoredRollout, counts_B: torch.Tensor, log: PPOLog, step: int = 0
    ) -> Batch:
        """Return the training batch; one without tokens where a number in it is not finite, or
        where no completion has an outcome. `step` is in the seed of what values sample."""
        batch, rewards_BC, mean_kl = self._batch(scored, counts_B, log, training=True, step=step)
        named = {
            "a log-probability": batch["old_logprobs"],
            "a value": batch["old_values"],
            "a reward": rewards_BC,
            "an advantage": batch["advantages"],
        }
        has_outcome_B = ~scored.outcomes_B.isnan()
        if not self.nonfinite.rollout_is_usable(named, batch["completion_mask"], has_outcome_B):
            return without_tokens(batch)
        if mean_kl is not None:
            self.kl.update(mean_kl, self.options.rollout_size)
        return batch

    def _batch(
        self,
        scored: ScoredRollout,
        counts_B: torch.Tensor,
        log: PPOLog,
        *,
        training: bool,
        step: int = 0,
    ) -> tuple[Batch, torch.Tensor, float | None]:
        reference = self.reference(scored.rollout) if self.options.kl_coef else None
        values, policy_mask_BC = None, None
        if training and self.values is not None:
            start = time.perf_counter()
            values = self.values(scored, counts_B, step, log)
            log.add("time/values", time.perf_counter() - start)
        if training and self.options.policy_token_share < 1:
            in_loss_B = counts_B & ~scored.outcomes_B.isnan()
            policy_mask_BC = self._high_entropy(scored.rollout, in_loss_B)
        return training_batch(
            scored,
            counts_B,
            self.options,
            log,
            kl=self.kl,
            ref_logprobs_BC=reference and reference.logprobs_BC,
            values=values,
            policy_mask_BC=policy_mask_BC,
            training=training,
        )

    def _high_entropy(self, rollout: Rollout, in_loss_B: torch.Tensor) -> torch.Tensor:
        assert self.policy_scores is not None, "policy_token_share needs policy_scores"
        return high_entropy_mask(
            self.policy_scores(rollout).entropy_BC,
            rollout.mask_completion_BC & in_loss_B.unsqueeze(1),
            self.options.policy_token_share,
            lambda x_N: gather_any_length(self.accelerator.gather, x_N),
        )

    def _question(self, row: Row) -> Question:
        if self.problems:
            return self.problems[row["problem"]].prompt
        return question_of(row["prompt"])

    def _draw(self, count: int, purpose: str, step: int) -> list[int]:
        return draw_questions(
            count,
            seeded_generator(self.seed, purpose, step),
            num_questions=len(self.dataset),
            curriculum=self.curriculum,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def _count_tokens(self, rollout: Rollout, log: PPOLog) -> None:
        tokens = rollout.mask_completion_BC.sum().float()
        log.add(SAMPLED_TOKENS, self.accelerator.reduce(tokens, reduction="sum").item())

    def _fit_verifier(self, scored: ScoredRollout) -> dict[str, float]:
        assert self.verifier is not None
        group = self.options.completions_per_question
        states = verifier_states(
            scored.rollout,
            scored.outcomes_B >= self.options.right_outcome,
            ~scored.outcomes_B.isnan(),
            group,
            step_ends=step_end_ids(self.tokenizer),
            end_think_id=self.tokenizer.convert_tokens_to_ids(END_THINK),
        )
        return self.verifier.learn(states, group)
