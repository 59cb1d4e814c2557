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

Beside this file: `ppo_rollout` samples and scores, `ppo_head` resumes one half used,
`ppo_log` logs, `ppo_checks` refuses.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Sampler as IndexSampler
from transformers import PreTrainedModel
from trl import GRPOTrainer

from pipeline.records import Rollout
from pipeline.tags import END_THINK
from pipeline.train.advantage import (
    gae,
    kl_charge,
    masked_moments,
    masked_sums,
    place_rewards,
    sibling_baseline,
    standardize,
)
from pipeline.train.losses import explained_variance, policy_loss, value_loss
from pipeline.train.order import EpochOrder, generator_at
from pipeline.train.ppo_checks import check_arguments, check_hooks
from pipeline.train.ppo_config import PPOConfig
from pipeline.train.ppo_head import ValueHeadTrainer
from pipeline.train.ppo_log import PPOLog, fill_table
from pipeline.train.ppo_rollout import RolloutSource, StepRewards, deal, step_marks, unpad
from pipeline.train.supervised import SupervisedPart

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


class ReasoningPPOTrainer(ValueHeadTrainer):
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
        policy.value_head.requires_grad_(True)  # PEFT freezes all but its adapters
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
        return EpochOrder(
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
            self._buffered_inputs = self._deal(self._rollout)
        return self._buffered_inputs[self._step % per_epoch]

    def _deal(self, rollout: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The rollout as micro-batches in random order, each told its minibatch's token count."""
        # Named by the step its epoch began with, which a run resumed in its middle knows as well.
        step = self.state.global_step
        epoch = step - step % self.args.num_minibatches
        minibatches = deal(
            rollout,
            self.args.num_minibatches,
            self.args.gradient_accumulation_steps,
            generator_at(self.args.seed, self.accelerator.process_index, "deal", epoch),
        )
        batches = []
        for micro in minibatches:
            tokens = sum(batch["completion_mask"].sum() for batch in micro)
            tokens = self.accelerator.reduce(tokens, reduction="sum")
            batches += [batch | {"minibatch_tokens": tokens} for batch in micro]
        return batches

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Sample and score; GRPOTrainer's group advantages become GAE on the value head."""
        start = time.perf_counter()
        prompts = [example["prompt"] for example in inputs]
        group = self.args.completions_per_question if self.model.training else 1
        rollout = self._source.sample(prompts, group, self._random("sample"))
        sampled = time.perf_counter()
        ids = unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
        texts = self._source.texts(ids)
        outcomes_B, parts = self._source.outcomes(inputs, prompts, texts, ids)
        steps = step_marks(self.step_rewards, self._tokenizer, inputs, texts, ids)
        scored = time.perf_counter()
        batch = self._advantages(rollout, outcomes_B, steps)
        log = self._ppo_log()
        log.rewards(self.reward_func_names, parts, outcomes_B)
        log.completions(rollout, steps)
        fill_table(self._logs, self.reward_func_names, parts, outcomes_B, prompts, texts)
        log.add("time/sample", sampled - start)
        log.add("time/reward", scored - sampled)
        return batch

    def _random(self, purpose: str) -> torch.Generator:
        """Every process draws its own numbers; every evaluation draws the same ones."""
        training = self.model.training
        place = self.state.global_step if training else f"evaluation/{self._evaluated}"
        return generator_at(self.args.seed, self.accelerator.process_index, purpose, place)

    def _ppo_log(self) -> PPOLog:
        return PPOLog(self._metrics["train" if self.model.training else "eval"], self.accelerator)

    def _advantages(
        self, rollout: Rollout, outcomes_B: torch.Tensor, steps: Any
    ) -> dict[str, torch.Tensor]:
        log = self._ppo_log()
        judged_B = ~outcomes_B.isnan()
        mask_BC = rollout.mask_completion_BC & judged_B.unsqueeze(1)
        rewards_BC = place_rewards(outcomes_B.nan_to_num(), rollout.mask_completion_BC, steps)
        rewards_BC = rewards_BC * mask_BC
        if self.args.kl_coef:
            ref_logprobs_BC = self._source.reference(rollout).logprobs_BC
            kl_BC = kl_charge(rollout.logprobs_BC, ref_logprobs_BC, mask_BC)
            rewards_BC = rewards_BC - self.args.kl_coef * kl_BC
            log.means({"kl": kl_BC}, mask_BC)
        advantages_BC, returns_BC = self._estimate(rewards_BC, rollout.values_BC, mask_BC)
        sums = self.accelerator.reduce(masked_sums(advantages_BC, mask_BC), reduction="sum")
        log.add(
            "explained_variance",
            explained_variance(rollout.values_BC[mask_BC], returns_BC[mask_BC]),
        )
        log.means({"value": rollout.values_BC, "return": returns_BC}, mask_BC)
        return {
            "prompt_ids": rollout.prompt_ids_BP,
            "prompt_mask": rollout.mask_prompt_BP,
            "completion_ids": rollout.completion_ids_BC,
            "completion_mask": mask_BC,
            "old_logprobs": rollout.logprobs_BC,
            "old_values": rollout.values_BC,
            "advantages": standardize(advantages_BC, mask_BC, masked_moments(sums)),
            "returns": returns_BC,
        }

    def _estimate(
        self, rewards_BC: torch.Tensor, values_BC: torch.Tensor, mask_BC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(advantages_BC, returns_BC). The siblings' correction is for the policy alone: V learns
        what a question is worth, not what is left after its siblings have told."""
        constants = {"gamma": self.args.gamma, "lam": self.args.lam}
        advantages_BC, returns_BC = gae(rewards_BC, values_BC, mask_BC, **constants)
        group = self.args.completions_per_question
        if self.args.sibling_baseline and self.model.training and len(mask_BC) % group == 0:
            # A completion that no function could judge says nothing about its siblings.
            judged_B = mask_BC.any(dim=1)
            totals_B = torch.where(judged_B, rewards_BC.sum(dim=1), values_BC[:, 0])
            baseline_B = sibling_baseline(totals_B, values_BC[:, 0], group)
            centred_BC = rewards_BC.clone()
            centred_BC[judged_B] -= place_rewards(baseline_B[judged_B], mask_BC[judged_B])
            advantages_BC, _ = gae(centred_BC, values_BC, mask_BC, **constants)
        return advantages_BC, returns_BC

    # ---- update ----

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """This micro-batch's share of its minibatch's loss: sums over tokens, divided by the tokens
        of the minibatch on all processes. GRPOTrainer's loss types do not apply."""
        mask_BC = inputs["completion_mask"]
        warming_up = self._warming_up()
        self.accelerator.unwrap_model(model).value_head.detached = warming_up
        scores = self._source.score_batch(
            model, inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], mask_BC
        )
        policy_BC, clipped_BC = policy_loss(
            scores.logprobs_BC,
            inputs["old_logprobs"],
            inputs["advantages"],
            clip=self.args.clip,
            clip_high=self.args.clip_high,
        )
        value_BC, _ = value_loss(
            scores.values_BC, inputs["old_values"], inputs["returns"], clip=self.args.value_clip
        )
        # Times 0, so that every parameter has a gradient for the processes to reduce.
        policy_weight = 0.0 if warming_up else 1.0
        per_token_BC = self.args.value_coef * value_BC + policy_weight * (
            policy_BC - self.args.entropy_coef * scores.entropy_BC
        )
        self._ppo_log().update(scores, inputs, policy_BC, value_BC, clipped_BC)
        if not self.model.training:
            return (per_token_BC * mask_BC).sum() / mask_BC.sum().clamp_min(1)
        # The processes' gradients are averaged afterwards, hence the factor. A minibatch that no
        # function could judge has no tokens.
        tokens = inputs["minibatch_tokens"].clamp_min(1) / self.accelerator.num_processes
        return (per_token_BC * mask_BC).sum() / tokens + self._supervised_share(model)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """A step that, while the value head warms up, leaves everything else alone: with gradients
        of 0 the optimizer would still decay the weights and age its averages."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._warming_up():
            for name, parameter in self.model.named_parameters():
                if "value_head." not in name:
                    parameter.grad = None
        return loss

    def _supervised_share(self, model: Any) -> torch.Tensor | float:
        """The supervised loss, on the last micro-batch of an optimizer step."""
        if self._supervised is None or self._warming_up() or not self.accelerator.sync_gradients:
            return 0.0
        with self.accelerator.autocast():
            loss = self._supervised.loss(model, self.state.global_step, self.accelerator.device)
        self._ppo_log().add("loss/supervised", loss.item())
        return self.args.supervised_coef * loss

    def _warming_up(self) -> bool:
        return self.state.global_step < self.args.value_warmup * self.args.steps_per_rollout


def no_outcome(completions: list, **columns: Any) -> list[float]:
    """0.0 for every completion."""
    return [0.0] * len(completions)
