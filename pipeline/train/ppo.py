"""PPO with a value head on TRL's GRPOTrainer.

TRL keeps the plumbing: arguments, reward functions, data, callbacks, trackers, evaluation, PEFT,
DeepSpeed and FSDP, vLLM, the Hub. Ours is what PPO is: the critic, where rewards land, GAE, the
losses, and a rollout that records what the update needs.

Five hooks of GRPOTrainer are replaced; HOOKS has their names, and below stands what ours do:

    _get_train_sampler                questions in an order that a resumed run finds again
    _prepare_inputs                   when to sample, and which sequences form a minibatch
    _generate_and_score_completions   sample, score, charge for KL, estimate advantages
    _compute_loss                     policy loss + value loss - entropy bonus
    _save                             the value head goes into its own file
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler as IndexSampler
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from pipeline.model import has_value_head, load_value_head, save_value_head, split_value_head
from pipeline.prompts import encode_prompts
from pipeline.records import Rollout
from pipeline.rollout import Sampler, Scores, score_completions
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
from pipeline.train.losses import approx_kl, explained_variance, policy_loss, value_loss
from pipeline.train.marks import marks_to_tokens, token_ends
from pipeline.train.optimizer import give_own_rate, muon_adamw
from pipeline.train.order import EpochOrder, generator_at
from pipeline.train.ppo_config import PPOConfig
from pipeline.train.supervised import SupervisedPart

# (question, answer, completion) -> (character offset in the completion, reward) of each step
StepRewards = Callable[[str, str, str], Sequence[tuple[int, float]]]

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


class ReasoningPPOTrainer(GRPOTrainer):
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
        missing = [hook for hook in HOOKS if not hasattr(GRPOTrainer, hook)]
        if missing:
            raise ImportError(
                f"this trl has no GRPOTrainer.{missing[0]}, which PPO replaces; "
                "install trl>=1.12,<1.17"
            )
        _check_arguments(model, args, step_rewards, kwargs)
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
        self._sampler = Sampler(
            policy,
            self._tokenizer,
            temperature=args.temperature,
            max_new_tokens=args.max_completion_length,
            batch_size=max(256, args.completions_per_question),
        )

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

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Muon where it is asked for, otherwise the optimizer that the arguments name."""
        is_new = self.optimizer is None
        if self.args.muon and is_new:
            self.optimizer = muon_adamw(
                self.model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                head_learning_rate=self.args.value_learning_rate,
            )
        optimizer = super().create_optimizer(model)
        if self.args.value_learning_rate and is_new and not self.args.muon:
            give_own_rate(optimizer, self.model.value_head, self.args.value_learning_rate)
        return optimizer

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
        """The rollout as micro-batches in random order, each told its minibatch's token count.

        Rows of like length share a micro-batch inside a minibatch, which saves padding and changes
        nothing else.
        """
        accumulate = self.args.gradient_accumulation_steps
        rows = torch.randperm(len(rollout["advantages"]), generator=self._random("deal"))
        lengths = (rollout["prompt_mask"].sum(dim=1) + rollout["completion_mask"].sum(dim=1)).cpu()
        batches = []
        for minibatch in rows.chunk(self.args.num_minibatches):
            by_length = minibatch[lengths[minibatch].argsort()]
            micro = [
                {name: value[part] for name, value in rollout.items()}
                for part in by_length.chunk(accumulate)
            ]
            tokens = sum(batch["completion_mask"].sum() for batch in micro)
            tokens = self.accelerator.reduce(tokens, reduction="sum")
            batches += [batch | {"minibatch_tokens": tokens} for batch in micro]
        return batches

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Sample and score; GRPOTrainer's group advantages become GAE on the value head."""
        start = time.perf_counter()
        prompts = [example["prompt"] for example in inputs]
        rollout = self._sample(prompts)
        sampled = time.perf_counter()
        ids = _unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
        # A model may end in one of several tokens; none of them is a part of the answer.
        ends = set(self._sampler.eos_ids)
        texts = self._tokenizer.batch_decode([row[:-1] if row[-1] in ends else row for row in ids])
        outcomes_B, parts = self._outcomes(inputs, prompts, texts, ids)
        steps = self._step_marks(inputs, texts, ids)
        scored = time.perf_counter()
        batch = self._advantages(rollout, outcomes_B, steps)
        self._log_rollout(rollout, outcomes_B, parts, steps, prompts, texts)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["time/sample"].append(sampled - start)
        self._metrics[mode]["time/reward"].append(scored - sampled)
        return batch

    def _sample(self, prompts: list) -> Rollout:
        """One completion a prompt; a prompt that stands G times in a row is prefilled once."""
        questions = [_question(prompt) for prompt in prompts]
        group = self.args.completions_per_question if self.model.training else 1
        whole = len(questions) % group == 0 and all(
            questions[i] == questions[i - i % group] for i in range(len(questions))
        )
        group = group if whole else 1
        prompt_ids = encode_prompts(self._tokenizer, questions[::group])
        if self.use_vllm:
            return self._sample_with_vllm(prompt_ids, group)
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
        ) as model:
            self._sampler.model = model
            self._sampler.generator = self._random("sample")
            rollout = self._sampler.sample(prompt_ids, group=group)
        return _to(rollout, self.accelerator.device)

    def _random(self, purpose: str) -> torch.Generator:
        """Every process draws its own numbers; every evaluation draws the same ones."""
        training = self.model.training
        place = self.state.global_step if training else f"evaluation/{self._evaluated}"
        return generator_at(self.args.seed, self.accelerator.process_index, purpose, place)

    def _sample_with_vllm(self, prompt_ids: list[list[int]], group: int) -> Rollout:
        """vLLM samples; one forward of the policy gives log-probabilities and values."""
        repeated = [ids for ids in prompt_ids for _ in range(group)]
        completions, _ = self._generate_single_turn(repeated, None, {}, group)
        rollout = _rollout_of_ids(repeated, completions, self._tokenizer.pad_token_id)
        rollout = _to(rollout, self.accelerator.device)
        scores = self._score(self.model, rollout)
        last = [ids[-1] in self.eos_token_ids for ids in completions]
        return Rollout(
            **{
                **vars(rollout),
                "logprobs_BC": scores.logprobs_BC,
                "values_BC": scores.values_BC,
                "truncated_B": ~torch.tensor(last, device=self.accelerator.device),
            }
        )

    def _outcomes(
        self, inputs: Any, prompts: list, texts: list[str], ids: list[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(outcomes_B, parts of all processes by function): the weighted reward of a completion.

        Reward functions see `thought</think>answer` as one assistant message. A completion that no
        function could judge has outcome nan.
        """
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        parts = self._calculate_rewards(inputs, prompts, completions, ids)
        mine = slice(
            self.accelerator.process_index * len(texts),
            (self.accelerator.process_index + 1) * len(texts),
        )
        weighted = parts[mine] * self.reward_weights.to(parts.device)
        outcomes_B = weighted.nansum(dim=1)
        outcomes_B[weighted.isnan().all(dim=1)] = torch.nan
        return outcomes_B, parts

    def _step_marks(
        self, inputs: Any, texts: list[str], ids: list[list[int]]
    ) -> list[list[tuple[int, float]]] | None:
        if self.step_rewards is None:
            return None
        steps = []
        for example, text, tokens in zip(inputs, texts, ids, strict=True):
            marks = self.step_rewards(example["question"], example["answer"], text)
            ends = token_ends(self._tokenizer, tokens) if marks else [0]
            steps.append(marks_to_tokens(marks, ends))
        return steps

    def _advantages(
        self, rollout: Rollout, outcomes_B: torch.Tensor, steps: Any
    ) -> dict[str, torch.Tensor]:
        mode = "train" if self.model.training else "eval"
        judged_B = ~outcomes_B.isnan()
        mask_BC = rollout.mask_completion_BC & judged_B.unsqueeze(1)
        rewards_BC = place_rewards(outcomes_B.nan_to_num(), rollout.mask_completion_BC, steps)
        rewards_BC = rewards_BC * mask_BC
        if self.args.kl_coef:
            ref_logprobs_BC = self._reference(rollout).logprobs_BC
            kl_BC = kl_charge(rollout.logprobs_BC, ref_logprobs_BC, mask_BC)
            rewards_BC = rewards_BC - self.args.kl_coef * kl_BC
            self._log_means(mode, {"kl": kl_BC}, mask_BC)
        advantages_BC, returns_BC = self._estimate(rewards_BC, rollout.values_BC, mask_BC)
        sums = self.accelerator.reduce(masked_sums(advantages_BC, mask_BC), reduction="sum")
        self._metrics[mode]["explained_variance"].append(
            explained_variance(rollout.values_BC[mask_BC], returns_BC[mask_BC])
        )
        self._log_means(mode, {"value": rollout.values_BC, "return": returns_BC}, mask_BC)
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

    @torch.no_grad()
    def _reference(self, rollout: Rollout) -> Scores:
        """The frozen SFT model's log-probabilities: a model of its own, or the policy without its
        adapters."""
        if self.ref_model is not None:
            return self._score(self.ref_model, rollout)
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return self._score(self.model, rollout)

    @torch.no_grad()
    def _score(self, model: Any, rollout: Rollout, size: int = 32) -> Scores:
        """Scores of a rollout in chunks of like length."""
        lengths_B = rollout.mask_prompt_BP.sum(dim=1) + rollout.mask_completion_BC.sum(dim=1)
        order = lengths_B.argsort()
        chunks = [
            self._score_batch(
                model,
                rollout.prompt_ids_BP[rows],
                rollout.mask_prompt_BP[rows],
                rollout.completion_ids_BC[rows],
                rollout.mask_completion_BC[rows],
            )
            for rows in order.split(size)
        ]
        back = order.argsort()
        values = [chunk.values_BC for chunk in chunks]
        return Scores(
            logprobs_BC=torch.cat([chunk.logprobs_BC for chunk in chunks])[back],
            entropy_BC=torch.cat([chunk.entropy_BC for chunk in chunks])[back],
            values_BC=None if values[0] is None else torch.cat(values)[back],
        )

    def _score_batch(self, model: Any, *tensors: torch.Tensor) -> Scores:
        with self.accelerator.autocast():
            return score_completions(model, *tensors, temperature=self.args.temperature)

    # ---- update ----

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """This micro-batch's share of its minibatch's loss: sums over tokens, divided by the tokens
        of the minibatch on all processes. GRPOTrainer's loss types do not apply."""
        mask_BC = inputs["completion_mask"]
        warming_up = self._warming_up()
        self.accelerator.unwrap_model(model).value_head.detached = warming_up
        scores = self._score_batch(
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
        self._log_update(scores, inputs, policy_BC, value_BC, clipped_BC)
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
        self._metrics["train"]["loss/supervised"].append(loss.item())
        return self.args.supervised_coef * loss

    def _warming_up(self) -> bool:
        return self.state.global_step < self.args.value_warmup * self.args.steps_per_rollout

    # ---- logging ----

    def _log_means(self, mode: str, named: dict[str, torch.Tensor], mask_BC: torch.Tensor) -> None:
        """Means over the tokens that count, of all processes."""
        totals = [(x_BC.detach() * mask_BC).sum() for x_BC in named.values()]
        sums = torch.stack([*totals, mask_BC.sum()]).float()
        *totals, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        for name, total in zip(named, totals, strict=True):
            if count:
                self._metrics[mode][name].append(total / count)

    def _log_update(
        self, scores: Scores, inputs: dict, policy_BC: Any, value_BC: Any, clipped_BC: Any
    ) -> None:
        named = {
            "loss/policy": policy_BC,
            "loss/value": value_BC,
            "entropy": scores.entropy_BC,
            "clipfrac": clipped_BC.float(),
            "approx_kl": approx_kl(scores.logprobs_BC.detach(), inputs["old_logprobs"]),
        }
        self._log_means(
            "train" if self.model.training else "eval", named, inputs["completion_mask"]
        )

    def _log_rollout(
        self, rollout: Rollout, outcomes_B: Any, parts: Any, steps: Any, prompts: list, texts: list
    ) -> None:
        mode = "train" if self.model.training else "eval"
        lengths_B = rollout.mask_completion_BC.sum(dim=1).float()
        metrics = self._metrics[mode]
        for index, name in enumerate(self.reward_func_names):
            metrics[f"reward/{name}"].append(parts[:, index].nanmean().item())
            self._logs["rewards"][name].extend(parts[:, index].tolist())
        paid = [sum(reward for _, reward in marks) for marks in steps] if steps else None
        judged_B = ~outcomes_B.isnan()
        self._log_means(mode, {"reward": outcomes_B.nan_to_num()}, judged_B)
        means = {
            "completions/mean_length": lengths_B.mean(),
            "completions/truncated": rollout.truncated_B.float().mean(),
        }
        if paid is not None:
            means["reward/steps"] = torch.tensor(paid).mean().to(lengths_B)
        gathered = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        for name, value in zip(means, gathered.tolist(), strict=True):
            metrics[name].append(value)
        # The parts are those of all processes already.
        self._logs["prompt"].extend(gather_object(prompts))
        self._logs["completion"].extend(gather_object(texts))
        self._logs["advantages"].extend(gather_object(outcomes_B.tolist()))

    # ---- saving ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The folder stays a plain model folder; the value head goes beside it."""
        model = self.accelerator.unwrap_model(self.model)
        plain, head = split_value_head(state_dict or model.state_dict())
        super()._save(output_dir, plain)
        if self.args.should_save:
            # Under PEFT only the adapters are among the weights.
            head = head or model.value_head.state_dict()
            save_value_head(model.value_head, output_dir or self.args.output_dir, head)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        head = load_value_head(resume_from_checkpoint)
        if head is None:
            raise ValueError(
                f"{resume_from_checkpoint} has no value head, so PPO cannot resume from it; point "
                "at a checkpoint of a PPO run"
            )
        model = self.accelerator.unwrap_model(self.model)
        model.value_head.load_state_dict(head.state_dict())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing is missing: the value head has its own file, tied weights stand elsewhere."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [
            key
            for key in load_result.missing_keys
            if key not in tied and not key.startswith("value_head.")
        ]
        super()._issue_warnings_after_load(load_result)


def no_outcome(completions: list, **columns: Any) -> list[float]:
    """0.0 for every completion."""
    return [0.0] * len(completions)


def _check_arguments(model: Any, args: PPOConfig, step_rewards: Any, others: dict) -> None:
    """ValueError for what would fail late, or be ignored."""
    if not has_value_head(model):
        raise ValueError("the model has no value head; call attach_value_head(model) first")
    ignored = [name for name in ("tools", "rollout_func", "environment_factory") if name in others]
    if ignored:
        raise ValueError(
            f"{ignored[0]} belongs to GRPOTrainer and does nothing in PPO; leave it out"
        )
    has_adapters = "peft_config" in others or hasattr(model, "peft_config")
    if args.kl_coef and not model.config._name_or_path and not has_adapters:
        raise ValueError(
            f"kl_coef={args.kl_coef} needs the reference model, and this model comes from no "
            "folder; load it with load_policy from one written by save_policy, or give kl_coef=0"
        )
    dataset = others.get("train_dataset")
    if hasattr(dataset, "__len__") and len(dataset) < args.questions_per_rollout:
        raise ValueError(
            f"questions_per_rollout={args.questions_per_rollout} is more than the "
            f"{len(dataset)} problems to train on; lower it or give more problems"
        )
    lacking = {"question", "answer"} - set(getattr(dataset, "column_names", None) or ())
    if step_rewards is not None and dataset is not None and lacking:
        raise ValueError(f"step_rewards needs the column {min(lacking)!r}; add it to the data")


def _question(prompt: Any) -> str:
    """The question of a prompt: one user message, or plain text."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) != 1 or prompt[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in prompt)
        raise ValueError(
            f"a prompt has the messages {roles or 'none'}; it must be one user message, as made by "
            "pipeline.prompts.user_message"
        )
    return prompt[0]["content"]


def _unpad(ids_BC: torch.Tensor, mask_BC: torch.Tensor) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(ids_BC, mask_BC, strict=True)]


def _to(rollout: Rollout, device: torch.device) -> Rollout:
    return Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout).items()})


def _rollout_of_ids(prompts: list[list[int]], completions: list[list[int]], pad_id: int) -> Rollout:
    from pipeline.rollout.sampler import pad_left

    prompt_ids_BP, mask_prompt_BP = pad_left(prompts, pad_id)
    reversed_BC, mask_BC = pad_left([ids[::-1] for ids in completions], pad_id)
    blank_BC = torch.zeros(mask_BC.shape)
    return Rollout(
        prompt_ids_BP=prompt_ids_BP,
        mask_prompt_BP=mask_prompt_BP,
        completion_ids_BC=reversed_BC.flip(1),
        mask_completion_BC=mask_BC.flip(1),
        logprobs_BC=blank_BC,
        values_BC=blank_BC,
        truncated_B=torch.zeros(len(completions), dtype=torch.bool),
    )
