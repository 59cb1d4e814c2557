"""PPO with a value head on TRL's GRPOTrainer.

TRL keeps the plumbing: arguments, reward functions, data, callbacks, trackers, evaluation, PEFT,
DeepSpeed and FSDP, vLLM, the Hub. Ours is what PPO is: the critic, where rewards land, GAE, the
losses, and a rollout that records what the update needs.

Five hooks of GRPOTrainer are replaced; HOOKS has their names, and below stands what ours do:

    _get_train_sampler                questions in an order that a resumed run finds again
    _prepare_inputs                   when to sample, and which sequences form a minibatch
    _generate_and_score_completions   sample, score, charge for KL, estimate advantages
    _compute_loss                     policy loss + value loss - entropy bonus
    _save                             the value head goes into its own file (head_files)

Beside this file: `ppo_rollout` samples and scores, `ppo_head` resumes one half used, `ppo_watch`
guards the weights and keeps a record, `questions` draws questions, `ppo_log` logs, `ppo_checks`
refuses.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler as IndexSampler
from transformers import PreTrainedModel
from trl import GRPOTrainer

from pipeline.chat.tags import END_THINK
from pipeline.model import attach_value_head, is_adapted
from pipeline.ppo.advantages import (
    gae,
    length_adaptive_lambda,
    masked_moments,
    masked_sums,
    overlong,
    place_rewards,
    rloo_baseline,
    standardize,
)
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.kl import kl_charge
from pipeline.ppo.losses import policy_loss, value_loss
from pipeline.ppo.metrics import PPOLog, fill_table
from pipeline.ppo.ppo_checks import check_arguments, check_hooks
from pipeline.ppo.ppo_watch import TOKENS, WatchedTrainer
from pipeline.ppo.rollout import (
    RolloutSource,
    StepRewards,
    make_minibatches,
    step_reward_tokens,
    unpad,
)
from pipeline.ppo.supervised import SupervisedPart
from pipeline.scoring import Scores
from pipeline.stats.value_metrics import explained_variance
from pipeline.training.determinism import SeededEpochSampler, seeded_generator

__all__ = ["HOOKS", "ReasoningPPOTrainer", "StepRewards", "no_outcome"]

HOOKS = (
    "_get_train_sampler",
    "_prepare_inputs",
    "_generate_and_score_completions",
    "_compute_loss",
    "_save",
)
PAPER = {
    "title": "Proximal Policy Optimization Algorithms",
    "id": "1707.06347",
    "citation": """\
@article{schulman2017proximal,
    title        = {{Proximal Policy Optimization Algorithms}},
    author       = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
    year         = 2017,
    eprint       = {arXiv:1707.06347},
}""",  # noqa: E501
}


class ReasoningPPOTrainer(WatchedTrainer):
    """PPO on one trunk: `model` is a causal LM with a value head (`attach_value_head`).

    The training data has the columns `prompt` (one user message) and whatever the reward functions
    read, such as `question` and `answer`. `step_rewards` pays single steps of the thought where
    they stand; the reward functions pay the whole completion on its last token.
    """

    _tag_names = ("trl", "ppo", "thinkhead")
    _name = "PPO"
    _paper = PAPER

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: Any,
        args: PPOConfig,
        *,
        step_rewards: StepRewards | None = None,
        supervised: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        check_hooks(GRPOTrainer, HOOKS)
        check_arguments(model, args, step_rewards, kwargs)
        self.step_rewards = step_rewards
        self._rollout: dict[str, torch.Tensor] = {}
        self._evaluated = 0  # batches of the evaluation that is running
        if step_rewards is not None and not reward_funcs:
            # GRPOTrainer wants a reward function also where single steps are all that is paid.
            reward_funcs, args.reward_weights = [no_outcome], None
        super().__init__(model, reward_funcs, args, **kwargs)
        policy = self.accelerator.unwrap_model(self.model)
        if is_adapted(policy):
            policy.value_head.requires_grad_(True)  # peft freezes all but its adapters
            attach_value_head(policy.get_base_model())  # and may replace the LM head
        self._supervised = self._supervised_part(supervised)
        self._source = RolloutSource(self, policy)

    def _supervised_part(self, rows: Sequence[dict[str, Any]] | None) -> SupervisedPart | None:
        if not self.args.supervised_coef:
            return None
        if rows is None:
            raise ValueError(
                f"supervised_coef={self.args.supervised_coef} needs worked solutions; pass "
                "supervised=... (rows of sft_dataset) or set it to 0"
            )
        return SupervisedPart(
            rows,
            batch_size=self.args.supervised_batch_size,
            end_think_id=self._tokenizer.convert_tokens_to_ids(END_THINK),
            seed=self.args.seed * 1000 + self.accelerator.process_index,
        )

    # ---- rollout ----

    def _get_train_sampler(self, dataset: Any = None) -> IndexSampler:
        """GRPOTrainer's, each question G times, with an order that follows from the epoch."""
        questions = super()._get_train_sampler(dataset)
        rollouts = len(questions.data_source) // self.args.questions_per_rollout
        steps = max(1, rollouts) * self.args.steps_per_rollout
        return SeededEpochSampler(
            questions, seed=self.args.seed, epoch=lambda: self.state.global_step // steps
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, torch.Tensor]:
        """One micro-batch. GRPOTrainer shuffles a rollout once; PPO deals it anew every epoch."""
        if not self.model.training:
            self._evaluated += 1
            return self._generate_and_score_completions(generation_batch)
        self._evaluated = 0
        per_epoch = self.args.steps_per_generation
        if self._step % (per_epoch * self.num_iterations) == 0 or not self._rollout:
            self._rollout = self._generate_and_score_completions(generation_batch)
        if self._step % per_epoch == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._make_minibatches(self._rollout)
        return self._buffered_inputs[self._step % per_epoch]

    def _make_minibatches(self, rollout: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The rollout as micro-batches in random order, each told its minibatch's token count."""
        # Named by the step its epoch began with, which a run resumed in its middle knows as well.
        step = self.state.global_step
        epoch = step - step % self.args.num_minibatches
        minibatches = make_minibatches(
            rollout,
            self.args.num_minibatches,
            self.args.gradient_accumulation_steps,
            seeded_generator(self.args.seed, self.accelerator.process_index, "deal", epoch),
        )
        batches = []
        for micro in minibatches:
            counts = {"minibatch_tokens": self._tokens(b["completion_mask"] for b in micro)}
            if "right" in rollout:
                counts["minibatch_right_tokens"] = self._tokens(
                    b["completion_mask"] & b["right"].unsqueeze(1) for b in micro
                )
            batches += [batch | counts for batch in micro]
        return batches

    def _tokens(self, masks: Iterable[torch.Tensor]) -> torch.Tensor:
        """How many tokens count, in all micro-batches and processes."""
        return self.accelerator.reduce(sum(mask_BC.sum() for mask_BC in masks), reduction="sum")

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Sample and score; GRPOTrainer's group advantages become GAE on the value head.

        The log tells what the policy does by itself: of the first draw, before questions are
        exchanged or completions left out.
        """
        training, log = self.model.training, self._ppo_log()
        group = self.args.completions_per_question if training else 1
        levels = self._questions.curriculum if training else None
        asked: list[int] = []
        if levels is not None:
            asked, inputs = self._questions.fresh(len(inputs) // group, "curriculum")
        scored, texts, parts = self._judged(inputs, "sample")
        log.rewards(self.reward_func_names, parts, scored.outcomes_B)
        log.completions(scored.rollout, scored.steps)
        log.critic(scored, self.args.right_outcome, group)
        prompts = [example["prompt"] for example in inputs]
        outcomes_B = scored.outcomes_B
        fill_table(self._logs, self.reward_func_names, parts, outcomes_B, prompts, texts)
        if not training:
            return self._batch(scored, torch.ones_like(outcomes_B, dtype=torch.bool))
        log.numbers(self._update_verifier(scored))
        self._write_samples(inputs, texts, scored)
        if levels is not None:
            log.numbers(self._questions.learn(asked, outcomes_B))
        scored, counts_B, numbers = self._questions.worth_training_on(
            scored, lambda rows, purpose: self._judged(rows, purpose)[0]
        )
        log.numbers(numbers)
        return self._batch(scored, counts_B)

    def _judged(self, inputs: Any, purpose: str) -> tuple[ScoredRollout, list[str], torch.Tensor]:
        """(completions and their pay, their texts, reward parts of all processes)."""
        start = time.perf_counter()
        prompts = [example["prompt"] for example in inputs]
        group = self.args.completions_per_question if self.model.training else 1
        rollout = self._source.sample(prompts, group, self._random(purpose))
        sampled = time.perf_counter()
        ids = unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
        texts = self._source.texts(ids)
        outcomes_B, parts = self._source.outcomes(inputs, prompts, texts, ids)
        steps = None
        if self.step_rewards is not None:
            marks = step_reward_tokens(self.step_rewards, self._tokenizer, inputs, texts, ids)
            unjudged_B = torch.tensor([row is None for row in marks], device=outcomes_B.device)
            outcomes_B = outcomes_B.masked_fill(unjudged_B, torch.nan)
            steps = [row or [] for row in marks]
        log = self._ppo_log()
        log.add(f"time/{purpose}", sampled - start)
        log.add("time/reward", time.perf_counter() - sampled)
        tokens = rollout.mask_completion_BC.sum().float()
        if self.model.training:
            log.add(TOKENS, self.accelerator.reduce(tokens, reduction="sum").item())
        return ScoredRollout(rollout, outcomes_B, steps), texts, parts

    def _random(self, purpose: str) -> torch.Generator:
        """Every process draws its own numbers; every evaluation draws the same ones."""
        training = self.model.training
        place = self.state.global_step if training else f"evaluation/{self._evaluated}"
        return seeded_generator(self.args.seed, self.accelerator.process_index, purpose, place)

    def _ppo_log(self) -> PPOLog:
        return PPOLog(self._metrics["train" if self.model.training else "eval"], self.accelerator)

    def _batch(self, scored: ScoredRollout, counts_B: torch.Tensor) -> dict[str, torch.Tensor]:
        """The rollout as the update reads it; a row that does not count has no token that does."""
        args, rollout, log = self.args, scored.rollout, self._ppo_log()
        judged_B = ~scored.outcomes_B.isnan()
        mask_BC = rollout.mask_completion_BC & (judged_B & counts_B).unsqueeze(1)
        rewards_BC = self._rewards(scored, judged_B) * mask_BC
        batch, drift = {}, {}
        if args.kl_coef:
            ref_logprobs_BC = self._source.reference(rollout).logprobs_BC
            kl_BC = kl_charge(
                rollout.logprobs_BC, ref_logprobs_BC, mask_BC, estimator=args.kl_estimator
            )
            if args.kl_in == "reward":
                rewards_BC = rewards_BC - self._kl.coef * kl_BC
            else:
                batch["ref_logprobs"] = ref_logprobs_BC
            drift = log.means({"kl": kl_BC}, mask_BC)
            log.add("kl_coef", self._kl.coef)
        advantages_BC, returns_BC = self._estimate(rewards_BC, rollout.values_BC, mask_BC)
        sums = self.accelerator.reduce(masked_sums(advantages_BC, mask_BC), reduction="sum")
        kept = (x_BC[mask_BC].float().cpu().numpy() for x_BC in (rollout.values_BC, returns_BC))
        log.add("explained_variance", explained_variance(*kept))
        log.means({"value": rollout.values_BC, "return": returns_BC}, mask_BC)
        if args.positive_nll_coef:
            batch["right"] = scored.outcomes_B >= args.right_outcome
        batch |= {
            "prompt_ids": rollout.prompt_ids_BP,
            "prompt_mask": rollout.mask_prompt_BP,
            "completion_ids": rollout.completion_ids_BC,
            "completion_mask": mask_BC,
            "old_logprobs": rollout.logprobs_BC,
            "old_values": rollout.values_BC,
            "advantages": standardize(advantages_BC, mask_BC, masked_moments(sums)),
            "returns": returns_BC,
        }
        if not self.model.training:
            return batch
        batch = self._without_infinities(batch, rewards_BC, judged_B)
        if drift and not self._nonfinite.left_out:
            self._kl.update(drift["kl"], args.rollout_size)
        return batch

    def _rewards(self, scored: ScoredRollout, judged_B: torch.Tensor) -> torch.Tensor:
        """rewards_BC: steps where they stand; the outcome on the last token, less the penalty for
        using up the budget."""
        rollout, args = scored.rollout, self.args
        outcomes_B = torch.where(judged_B, scored.outcomes_B, 0.0)
        if args.overlong_penalty and self.model.training:
            overlong_B = overlong(
                rollout.mask_completion_BC.sum(dim=1),
                rollout.truncated_B,
                budget=args.max_completion_length,
                buffer=args.overlong_buffer,
            )
            outcomes_B = outcomes_B - args.overlong_penalty * overlong_B
            share = self.accelerator.reduce(overlong_B.mean(), reduction="mean")
            self._ppo_log().add("reward/overlong", -args.overlong_penalty * share.item())
        return place_rewards(outcomes_B, rollout.mask_completion_BC, scored.steps)

    def _estimate(
        self, rewards_BC: torch.Tensor, values_BC: torch.Tensor, mask_BC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(advantages_BC, returns_BC). The siblings' correction is for the policy alone: V learns
        what a question is worth, not what is left after its siblings have told. Lambda may differ
        as well: V is best taught by the outcome, the policy by less noise (VC-PPO,
        arXiv:2503.01491)."""
        args = self.args
        value_lam = args.lam if args.value_lam is None else args.value_lam
        policy_lam: float | torch.Tensor = args.lam
        if args.lam_alpha is not None:
            policy_lam = length_adaptive_lambda(mask_BC, args.lam_alpha)
        advantages_BC, returns_BC = gae(
            rewards_BC, values_BC, mask_BC, gamma=args.gamma, lam=value_lam
        )
        group = args.completions_per_question
        siblings = args.rloo_baseline and self.model.training and len(mask_BC) % group == 0
        if siblings:
            # A completion that no function could judge says nothing about its siblings.
            judged_B = mask_BC.any(dim=1)
            totals_B = torch.where(judged_B, rewards_BC.sum(dim=1), values_BC[:, 0])
            baseline_B = rloo_baseline(totals_B, values_BC[:, 0], group)
            rewards_BC = rewards_BC.clone()
            rewards_BC[judged_B] -= place_rewards(baseline_B[judged_B], mask_BC[judged_B])
        if siblings or policy_lam is not value_lam:
            advantages_BC, _ = gae(rewards_BC, values_BC, mask_BC, gamma=args.gamma, lam=policy_lam)
        return advantages_BC, returns_BC

    # ---- update ----

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """This micro-batch's share of its minibatch's loss: sums over tokens, divided by the tokens
        of the minibatch on all processes. GRPOTrainer's loss types do not apply."""
        mask_BC = inputs["completion_mask"]
        warming_up = self._warming_up()
        self.accelerator.unwrap_model(model).value_head.detached = warming_up
        scores, supervised_loss = self._scores(model, inputs)
        policy_BC, clipped_BC = policy_loss(
            scores.logprobs_BC,
            inputs["old_logprobs"],
            inputs["advantages"],
            clip=self.args.clip,
            clip_high=self.args.clip_high,
            dual_clip=self.args.dual_clip,
        )
        value_BC, _ = value_loss(
            scores.values_BC, inputs["old_values"], inputs["returns"], clip=self.args.value_clip
        )
        # Times 0, so that every parameter has a gradient for the processes to reduce.
        policy_weight = 0.0 if warming_up else 1.0
        per_token_BC = self.args.value_coef * value_BC + policy_weight * (
            policy_BC - self.args.entropy_coef * scores.entropy_BC
        )
        if "ref_logprobs" in inputs and self.model.training:
            kl_BC = kl_charge(
                scores.logprobs_BC,
                inputs["ref_logprobs"],
                mask_BC,
                estimator=self.args.kl_estimator,
            )
            per_token_BC = per_token_BC + policy_weight * self._kl.charged * kl_BC
        self._ppo_log().update(scores, inputs, policy_BC, value_BC, clipped_BC)
        if not self.model.training:
            return (per_token_BC * mask_BC).sum() / mask_BC.sum().clamp_min(1)
        # The processes' gradients are averaged afterwards, hence the factor. A minibatch that no
        # function could judge has no tokens.
        tokens = inputs["minibatch_tokens"].clamp_min(1) / self.accelerator.num_processes
        loss = (per_token_BC * mask_BC).sum() / tokens
        if supervised_loss is not None:
            loss = loss + self.args.supervised_coef * supervised_loss
        if "right" in inputs:
            loss = loss + policy_weight * self._imitation(scores.logprobs_BC, inputs)
        return loss

    def _scores(
        self, model: Any, inputs: dict[str, torch.Tensor]
    ) -> tuple[Scores, torch.Tensor | None]:
        """(scores, supervised loss); worked solutions pass the trunk together with the last
        micro-batch of an optimizer step."""
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        completions = [inputs[name] for name in names]
        due = self.model.training and self.accelerator.sync_gradients and not self._warming_up()
        if self._supervised is None or not due:
            return self._source.score_batch(model, *completions), None
        rows = [x.to(completions[0].device) for x in self._supervised.batch(self.state.global_step)]
        scores, logprobs_RT = self._source.score_batch_and_rows(model, *completions, *rows)
        loss = self._supervised.loss(logprobs_RT, *rows)
        self._ppo_log().add("loss/supervised", loss.item())
        return scores, loss

    def _imitation(
        self, logprobs_BC: torch.Tensor, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Cross-entropy of the policy's own right completions (VAPO, arXiv:2504.05118), this
        micro-batch's share of the mean over their tokens in the minibatch."""
        mask_BC = inputs["completion_mask"] & inputs["right"].unsqueeze(1)
        self._ppo_log().means({"loss/positive": -logprobs_BC}, mask_BC)
        tokens = inputs["minibatch_right_tokens"].clamp_min(1) / self.accelerator.num_processes
        return -self.args.positive_nll_coef * (logprobs_BC * mask_BC).sum() / tokens


def no_outcome(completions: list, **columns: Any) -> list[float]:
    """0.0 for every completion."""
    return [0.0] * len(completions)
