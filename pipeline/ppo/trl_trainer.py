"""PPO with a value head on TRL's GRPOTrainer: a thin shell around the core in this package.

TRL provides arguments, reward functions, data, callbacks, trackers, evaluation, PEFT, DeepSpeed and
FSDP, vLLM and the Hub. This file connects them to the core: it samples, calls the rewards, asks the
core for a training batch and for the loss of a micro-batch, and saves what the core keeps.

With `pipeline.training.trainer_shell` this is the only file that uses private names of TRL. The
tables below list them; they are checked when a trainer is built.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler as IndexSampler
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from pipeline.config import require, reward_log_names
from pipeline.model import (
    attach_value_head,
    copy_reasoning_layer,
    has_reasoning_layer,
    is_adapted,
)
from pipeline.model.loading import is_quantized
from pipeline.ppo import parts, rollout, run_state, update
from pipeline.ppo.citation import PAPER
from pipeline.ppo.collector import SAMPLED_TOKENS, RolloutCollector, Samples
from pipeline.ppo.config import PPOConfig, check_arguments
from pipeline.ppo.delayed_update import DelayedUpdate, drop_gradients, policy_parameters
from pipeline.ppo.ema import WeightsEMA
from pipeline.ppo.kl import make_kl_controller
from pipeline.ppo.metrics import (
    MeanSums,
    PPOLog,
    fill_table,
    gather_samples,
    mean_advantages,
    sample_rows,
)
from pipeline.ppo.minibatches import (
    SCORED,
    Batch,
    MicroBatch,
    cut_evenly,
    cut_to_budget,
    make_micro_batches,
)
from pipeline.ppo.policy_sampler import PolicySampler
from pipeline.ppo.policy_scores import PolicyScorer
from pipeline.ppo.problem_rows import no_outcome, problem_dataset
from pipeline.ppo.reward_logs import RewardLogs
from pipeline.ppo.rollout import RewardFn, StepRewards
from pipeline.ppo.rollout_models import RolloutModels
from pipeline.ppo.supervised_step import supervised_step
from pipeline.ppo.value_model import start_value_model
from pipeline.records import Problem
from pipeline.scoring import (
    Scores,
    score_completions_and_rows,
    supports_packing,
)
from pipeline.scoring.compiled_layers import compile_decoder_layers
from pipeline.scoring.packing import to_device
from pipeline.training.callbacks import AfterStep
from pipeline.training.controllers import Controller
from pipeline.training.determinism import SeededEpochSampler, seeded_generator
from pipeline.training.jsonl_log import SAMPLES_FILE, JsonlLogCallback, append, show
from pipeline.training.library_checks import check_private_names
from pipeline.training.nonfinite import NonfiniteCheck
from pipeline.training.progress import TrainingProgress
from pipeline.training.reward_errors import RewardError, raise_together
from pipeline.training.token_budget import most_of_processes
from pipeline.training.trainer_shell import TrainerShell

__all__ = ["ReasoningPPOTrainer"]

# Methods and class attributes of GRPOTrainer.
PRIVATE_METHODS = {
    "_prepare_inputs": "overridden: when to sample, and which sequences form a micro-batch",
    "_calculate_rewards": "called: rewards of TRL's reward functions and reward models",
    "_name": "set: name of the method in the model card",
    "_paper": "set: paper in the model card",
}
# Attributes of an instance of GRPOTrainer, there after __init__.
PRIVATE_ATTRIBUTES = {
    "_metrics": "read: metrics of training, where evaluation is not running",
    "_logs": "filled: table of completions of `log_completions`",
}
# Methods of trl.generation.vllm_generation.VLLMGeneration.
PRIVATE_VLLM = {
    "_iter_named_params": "replaced: vLLM gets the weights of the causal LM alone, adapters merged",
}
TRLReward: TypeAlias = str | PreTrainedModel | Callable[..., Sequence[float | None]]


class ReasoningPPOTrainer(TrainerShell, GRPOTrainer):
    """PPO on one trunk: `model` is a causal LM with a value head (`attach_value_head`).

    Args:
        reward_funcs: {name: function (problem, completion) -> float or None}, which needs
            `problems`; or a list of TRL's reward functions (prompts, completions, **columns) and
            reward models. `args.reward_weights` has their weights in order.
        problems: the training data. Without them, `train_dataset` has the column `prompt` (one user
            message or plain text) and what TRL's reward functions read. Beside them, data sets have
            the column `problem`, indices into `problems` (`problem_dataset`).
        step_rewards: (problem, completion) -> (character offset, reward) of single steps, which are
            added to the reward of the token at that offset. Needs `problems`.
        supervised: rows of `sft_dataset`, needed where `args.supervised_coef` is above 0.

    Raises:
        ValueError: for arguments that would fail late or be ignored.
        ImportError: where the installed TRL lacks a private name that is used here.
    """

    tags = ("trl", "ppo", "thinkhead")
    reward_funcs: list[Callable | nn.Module]  # set by GRPOTrainer
    ref_model: PreTrainedModel | None  # likewise
    _name = "PPO"
    _paper = PAPER

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: Mapping[str, RewardFn] | Sequence[TRLReward] | TRLReward,
        args: PPOConfig,
        *,
        problems: Sequence[Problem] = (),
        step_rewards: StepRewards | None = None,
        supervised: Sequence[Mapping[str, list[int]]] | None = None,
        **kwargs: object,
    ):
        check_private_names(GRPOTrainer, PRIVATE_METHODS, __name__)
        self.problem_rewards: Mapping[str, RewardFn] = (
            reward_funcs if isinstance(reward_funcs, Mapping) else {}
        )
        by_name = isinstance(reward_funcs, Mapping)
        if problems and kwargs.get("train_dataset") is None:
            kwargs["train_dataset"] = problem_dataset(problems)
        check_arguments(
            model,
            args,
            kwargs,
            problems=problems,
            need_problems={"step_rewards": step_rewards, "a reward function by name": by_name},
            supervised=supervised,
        )
        self.problems = problems
        if by_name:
            reward_funcs = [no_outcome] * len(self.problem_rewards)  # TRL counts and names them
        if step_rewards is not None and not reward_funcs:
            # GRPOTrainer needs a reward function also where there are only step rewards.
            reward_funcs, args.reward_weights = [no_outcome], None
        self.value_learning_rate = args.value_learning_rate
        self.rollout_batch: Batch = {}  # what the current rollout's updates read
        self.minibatches: list[list[MicroBatch]] = []  # of the current epoch
        self.micro_batch = MicroBatch()  # the one that is computed
        self.is_last_micro_batch = True  # of its minibatch
        self.update_sums = MeanSums()
        self.reward_logs = RewardLogs()
        self.minibatch_step = 0  # minibatches since the beginning of the run
        self.eval_batches = 0  # batches of the evaluation that is running
        self.evaluates_average = False  # whether that evaluation is of the averaged weights
        super().__init__(model, reward_funcs, args, **kwargs)
        check_private_names(self, PRIVATE_ATTRIBUTES, __name__)

        policy = self.accelerator.unwrap_model(self.model)
        if args.disable_dropout:
            parts.turn_off_dropout(policy)
        if has_reasoning_layer(policy):
            self._require_options_for_reasoning(args)
            if self.ref_model is not None:  # TRL has loaded it without the layer
                copy_reasoning_layer(policy, self.accelerator.unwrap_model(self.ref_model))
        require(
            not any("base_layer." in name for name, _ in policy.value_head.named_parameters()),
            "peft_config adapts the value head too, which is trained whole and saved in a file of "
            r"its own; give LoraConfig exclude_modules=r'.*\bvalue_head\b.*'",
        )
        policy.value_head.requires_grad_(True)  # peft and SFT freeze it
        if is_adapted(policy):
            attach_value_head(policy.get_base_model())  # peft may have replaced the LM head
        if args.compile_layers:
            self._compile_layers(policy)
        self.nonfinite = NonfiniteCheck(self.accelerator)
        if self.problem_rewards:
            self.reward_func_names = reward_log_names(list(self.problem_rewards))
        else:
            self.reward_funcs = [
                function
                if isinstance(function, nn.Module)
                else self.nonfinite.wrap(function, name, self.reward_logs.arguments())
                for function, name in zip(self.reward_funcs, self.reward_func_names, strict=True)
            ]
        self.rollout_models = None
        if self.is_fsdp_enabled:
            self.rollout_models = RolloutModels(
                self.skeleton, self.ref_model, self.accelerator, live_reference=args.sync_ref_model
            )
            self.ref_model = self.ref_model if args.sync_ref_model else None
        self.kl = make_kl_controller(args)
        self.target_kl = parts.make_target_kl(args)
        self.curriculum = parts.make_curriculum(args, self.train_dataset, args.seed)
        self.replay = parts.make_replay(args)
        self.online_verifier = parts.make_online_verifier(args, policy, args.seed, self._average)
        process_seed = args.seed * 1000 + self.accelerator.process_index
        self.supervised = parts.make_supervised(
            args, supervised, self.processing_class, process_seed
        )
        self.scorer = PolicyScorer(
            accelerator=self.accelerator,
            temperature=args.temperature,
            policy=lambda: self.model,
            frozen=lambda: self.ref_model,
            copies=self.rollout_models,
            unsharded_policy=not self.use_vllm,
            together=self.is_deepspeed_enabled,
            max_tokens=args.micro_batch_tokens,
        )
        self.policy_sampler = PolicySampler(
            options=args,
            temperature=args.temperature,
            tokenizer=self.processing_class,
            accelerator=self.accelerator,
            policy=lambda: self.model,
            whole_policy=self._whole_policy,
            skeleton=lambda: self.skeleton,
            scorer=self.scorer,
            step=lambda: self.state.global_step,
            together=self.is_deepspeed_enabled,
        )
        if self.use_vllm:
            self._use_vllm(policy)
        end_ids = self.policy_sampler.sampler.eos_ids
        self.value_model = start_value_model(
            policy,
            args,
            self.accelerator,
            learning_rate=args.value_learning_rate or args.learning_rate,
            max_grad_norm=args.max_grad_norm or 0.0,
            scorer=self.scorer.by,
            seed=args.seed,
        )
        values = parts.make_value_source(
            args,
            verifier=self.online_verifier,
            model=self.value_model,
            go_on=self.policy_sampler.go_on,
            score=self.score,
            tokenizer=self.processing_class,
            end_ids=end_ids,
            accelerator=self.accelerator,
            seed=args.seed,
            problems=problems,
            step_rewards=step_rewards,
        )
        self.collector = RolloutCollector(
            options=args,
            tokenizer=self.processing_class,
            sample=self.policy_sampler.sample,
            score=self.score,
            reference=self.scorer.reference,
            accelerator=self.accelerator,
            seed=args.seed,
            dataset=self.train_dataset,
            end_ids=end_ids,
            kl=self.kl,
            nonfinite=self.nonfinite,
            problems=problems,
            step_rewards=step_rewards,
            curriculum=self.curriculum,
            replay=self.replay,
            verifier=self.online_verifier,
            values=values,
            policy_scores=lambda samples: self.scorer.rollout(self.model, samples),
            fit_values=None if self.value_model is None else self.value_model.learn,
        )
        self.ema = None
        if args.ema_decay is not None:
            require(
                not (self.is_deepspeed_enabled or self.is_fsdp_enabled),
                f"ema_decay={args.ema_decay} needs whole weights on every process, and DeepSpeed "
                "and FSDP divide them; leave it out",
            )
            self.ema = WeightsEMA(policy.named_parameters(), decay=args.ema_decay)
        require(
            args.supervised_mode == "joint" or not self.is_deepspeed_enabled,
            "supervised_mode=alternate takes optimizer steps of its own, which DeepSpeed does not "
            "allow; give supervised_mode=joint",
        )
        self.add_callback(AfterStep(self.after_step))
        self.add_callback(JsonlLogCallback())
        alarms = parts.make_alarms(args)
        if alarms is not None:
            self.add_callback(alarms)

    def _use_vllm(self, policy: PreTrainedModel) -> None:
        """Sample with TRL's vLLM, which is given the weights of the causal LM alone."""
        if is_quantized(policy):
            raise ValueError(
                "use_vllm=true with load_in_4bit=true: adapters cannot be merged into weights of "
                "4 bits for vLLM; leave one of them out"
            )
        engine = self.vllm_generation
        check_private_names(engine, PRIVATE_VLLM, __name__)
        engine._iter_named_params = partial(
            self.policy_sampler.weights_for_vllm, engine._iter_named_params
        )
        self.policy_sampler.vllm = engine

    @staticmethod
    def _require_options_for_reasoning(args: PPOConfig) -> None:
        """Raise ValueError for options that would leave out the policy's reasoning layer."""
        for name in ("use_vllm", "sync_ref_model"):
            require(
                not getattr(args, name),
                f"{name}=true reads the plain causal LM, and this policy has a reasoning layer; "
                "leave it out",
            )

    def _compile_layers(self, policy: PreTrainedModel) -> None:
        """Compile the layers of policy and reference for packed rows."""
        require(
            supports_packing(policy) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled),
            "compile_layers=true compiles the layers of packed rows, and this model is scored in "
            "padded ones (docs/scale.md); leave it out",
        )
        compile_decoder_layers(policy)
        if self.ref_model is not None:
            compile_decoder_layers(self.accelerator.unwrap_model(self.ref_model))

    def make_progress(self) -> TrainingProgress:
        """Return a bar that counts rollouts, with their sampling and updates."""
        steps = self.args.steps_per_rollout
        return TrainingProgress("PPO", unit="rollouts", steps_per_unit=steps)

    def _average(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean over processes, on the CPU."""
        return self.accelerator.reduce(x.to(self.accelerator.device), reduction="mean").cpu()

    # ---- data ----

    def train_sampler(self, dataset: Dataset | None = None) -> IndexSampler:
        """Return TRL's sampler, each question G times, in an order that follows from the epoch."""
        questions = super().train_sampler(dataset)
        assert questions is not None
        rollouts = len(questions.data_source) // self.args.questions_per_rollout
        steps = max(1, rollouts) * self.args.steps_per_rollout
        return SeededEpochSampler(
            questions, seed=self.args.seed, epoch=lambda: self.state.global_step // steps
        )

    def _prepare_inputs(self, generation_batch: list[dict]) -> Batch:
        """Return the current micro-batch, in evaluation the batch of TRL's rows; GRPOTrainer
        shuffles a rollout once, PPO in every epoch."""
        if not self.model.training:
            self.eval_batches += 1
            return self.collect_rollout(generation_batch)
        return self.micro_batch

    def next_minibatch(self, generation_batch: list[dict]) -> list[MicroBatch]:
        """Return the micro-batches of the optimizer step that begins."""
        per_epoch = self.args.num_minibatches
        if self.minibatch_step % self.args.steps_per_rollout == 0 or not self.rollout_batch:
            self.rollout_batch = self.collect_rollout(generation_batch)
        if self.minibatch_step % per_epoch == 0 or not self.minibatches:
            self.minibatches = self.cut_rollout(self.rollout_batch)
        return self.minibatches[self.minibatch_step % per_epoch]

    def cut_rollout(self, batch: Batch) -> list[list[MicroBatch]]:
        """Return the minibatches of the epoch that begins or is running, each as micro-batches."""
        args, step = self.args, self.state.global_step
        once = args.minibatch_shuffle == "rollout"
        period = args.steps_per_rollout if once else args.num_minibatches
        begin = step - step % period  # known to a run resumed after it as well
        cut = cut_evenly(args.micro_batch_size or args.per_device_train_batch_size)
        if args.micro_batch_tokens is not None:
            cut = cut_to_budget(
                args.micro_batch_tokens,
                args.micro_batch_size,
                padded=not supports_packing(self.model),
                most_of_processes=partial(most_of_processes, self.accelerator),
            )
        minibatches = make_micro_batches(
            batch,
            args.num_minibatches,
            # The label is a part of the seed: another one would change the order of every run.
            seeded_generator(args.seed, self.accelerator.process_index, "deal", begin),
            cut,
            lambda x: self.accelerator.reduce(x, reduction="sum"),
            args.token_mean,
        )
        # Read from the device here, so that nothing is read while a micro-batch is computed.
        self.scorer.prepare(self.model, batch, [micro for part in minibatches for micro in part])
        return minibatches

    # ---- rollout ----

    def collect_rollout(self, rows: list[dict]) -> Batch:
        """Return the training batch of TRL's batch of rows, and log the samples."""
        before = {name: list(values) for name, values in self.metrics.items()}
        curriculum = None if self.curriculum is None else self.curriculum.state_dict()
        try:
            return self._collect(rows)
        except RewardError:  # a checkpoint follows, and this rollout is sampled again after it
            self.metrics.clear()
            self.metrics.update(before)
            if self.curriculum is not None and curriculum is not None:
                self.curriculum.load_state_dict(curriculum)
            raise

    def _collect(self, rows: list[dict]) -> Batch:
        self.reward_logs.begin()
        with self.rollout_models.rollout() if self.rollout_models else nullcontext():
            if self.model.training:
                step = self.state.global_step
                batch, samples = self.collector.collect(rows, step, self.log_metrics)
                self._write_samples(samples)
            else:
                batch, samples = self.collector.evaluate(rows, self.eval_batches, self.log_metrics)
        outcomes_B = samples.scored.outcomes_B
        self.log_metrics.rewards(self.reward_func_names, samples.parts, outcomes_B)
        prompts = [row["prompt"] for row in samples.rows_B]
        advantages = mean_advantages(batch, samples.scored.rollout)
        fill_table(
            self._logs, self.reward_func_names, samples.parts, advantages, prompts, samples.texts
        )
        self.reward_logs.flush(self.log_metrics, self._logs, len(samples.texts))
        return batch

    def _whole_policy(self) -> AbstractContextManager[nn.Module]:
        """Return a context with the policy to sample from: unwrapped, its weights gathered."""
        if self.rollout_models is not None:
            return nullcontext(self.rollout_models.policy(self.model))
        return unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
        )

    def score(
        self, rows_B: list[dict], texts: list[str], ids: list[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (outcomes_B, reward parts of all processes by function)."""
        if self.problem_rewards:
            problems_B = [self.problems[row["problem"]] for row in rows_B]
            with raise_together(self.accelerator):
                parts_BF = rollout.reward_parts(
                    self.problem_rewards, problems_B, texts, self.nonfinite.record_rewards
                )
            parts = self.accelerator.gather(parts_BF.to(self.accelerator.device))
        else:
            # TRL's reward functions read `thought</think>answer` as one assistant message.
            prompts = [row["prompt"] for row in rows_B]
            completions = [[{"role": "assistant", "content": text}] for text in texts]
            parts = self._calculate_rewards(rows_B, prompts, completions, ids)
            self.reward_logs.end()  # rewards that follow in this rollout are of other completions
        first = self.accelerator.process_index * len(texts)
        mine_BF = parts[first : first + len(texts)]
        return rollout.weighted_outcomes(mine_BF, self.reward_weights), parts

    # ---- update ----

    def warming_up(self) -> bool:
        """Return whether only the value head is trained in this step."""
        return self.state.global_step < self.args.value_warmup * self.args.steps_per_rollout

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return this micro-batch's share of its minibatch's loss; GRPOTrainer's losses do not
        apply."""
        warming_up = self.warming_up()
        value_head = self.accelerator.unwrap_model(model).value_head
        value_head.detached = warming_up or self.args.value_detach
        if not self.model.training:
            scores = self.scorer.by(model)(*(inputs[name] for name in SCORED))
            return update.evaluation_loss(scores, inputs, self.args, self.log_metrics)
        scores, supervised_loss = self._score_micro_batch(model)
        return update.micro_batch_loss(
            scores,
            inputs,
            self.args,
            self.update_sums,
            kl_coef=self.kl.rollout_coef,
            warming_up=warming_up,
            processes=self.accelerator.num_processes,
            supervised_loss=supervised_loss,
        )

    def _score_micro_batch(self, model: nn.Module) -> tuple[Scores, torch.Tensor | None]:
        """Return (scores, supervised loss); worked solutions are scored in one forward with the
        last micro-batch of an optimizer step."""
        completions = self.micro_batch.completions
        assert completions is not None, "cut_rollout makes every micro-batch ready"
        due = self.is_last_micro_batch and not self.warming_up()
        due &= self.args.supervised_mode == "joint"
        if self.supervised is None or not due:
            return self.scorer.prepared(model, completions), None
        rows = self.supervised.batch(self.state.global_step)
        with self.accelerator.autocast():
            scores, logprobs_RT = score_completions_and_rows(
                model, completions, *rows, temperature=self.args.temperature
            )
        loss = self.supervised.loss(logprobs_RT, *(to_device(x, completions.device) for x in rows))
        self.update_sums.means({"loss/supervised": loss[None]}, torch.ones_like(loss[None]))
        return scores, loss

    def training_step(
        self,
        model: nn.Module,
        inputs: list[dict],
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run forward and backward of the micro-batches of one optimizer step, and check the
        gradients. Return their losses' sum, which is that of the minibatch."""
        start, losses = time.perf_counter(), []
        model.train()
        micro_batches = self.next_minibatch(inputs)
        with self.weights_cast_once():
            for micro_batch in micro_batches:
                self.micro_batch = micro_batch
                self.is_last_micro_batch = micro_batch is micro_batches[-1]
                with self.reduced_at_the_end(model, is_last=self.is_last_micro_batch):
                    losses.append(super().training_step(model, inputs, num_items_in_batch))
        self.update_sums.flush(self.log_metrics)
        self.minibatch_step += 1
        self.release_gradients()
        # One entry a step in place of one a micro-batch, with the sampling.
        self.metrics["step_time"][-len(losses) :] = [time.perf_counter() - start]
        return torch.stack(losses).sum()

    def release_gradients(self) -> None:
        """Drop gradients that are not finite, or not to be applied in this step."""
        parameters = list(self.model.parameters())
        if self.passed_target_kl():
            drop_gradients(parameters)
            return
        left_out = self.nonfinite.left_out or not self.nonfinite.gradients_are_finite(parameters)
        if left_out:
            drop_gradients(parameters)
        else:
            self.nonfinite.step_was_taken()
        if self.warming_up():
            drop_gradients(policy_parameters(self.model))
        elif self.delayed_update is not None:
            self.delayed_update.step(self.state.global_step, usable=not left_out)

    def passed_target_kl(self) -> bool:
        """Return whether target_kl leaves out this optimizer step, and log it."""
        if self.target_kl is None:
            return False
        kls = self.metrics["approx_kl"][-1:]  # none yet where no completion had tokens
        step = self.state.global_step % self.args.steps_per_rollout
        left_out = self.target_kl.is_left_out(step, sum(kls))
        self.log_metrics.add("target_kl/left_out", float(left_out))
        return left_out

    def after_step(self) -> None:
        """Take the supervised steps that follow a rollout, and update the average."""
        args, step = self.args, self.state.global_step
        rollouts, rest = divmod(step, args.steps_per_rollout)
        due = args.supervised_mode == "alternate" and not rest and rollouts > args.value_warmup
        if self.supervised is not None and due:
            assert self.optimizer is not None
            for k in range(args.supervised_steps):
                loss = supervised_step(
                    self.model_wrapped,
                    self.supervised,
                    (rollouts - 1) * args.supervised_steps + k,
                    coef=args.supervised_coef,
                    optimizer=self.optimizer,
                    accelerator=self.accelerator,
                    max_grad_norm=args.max_grad_norm,
                    nonfinite=self.nonfinite,
                )
                self.log_metrics.add("loss/supervised", loss)
        if self.ema is not None:
            self.ema.update()

    @cached_property
    def delayed_update(self) -> DelayedUpdate | None:
        """Accumulated gradients, where the policy takes fewer steps than the value head."""
        args = self.args
        if args.policy_steps_per_rollout in (None, args.steps_per_rollout):
            return None
        steps = args.steps_per_rollout // args.policy_steps_per_rollout
        return DelayedUpdate(policy_parameters(self.model), steps=steps)

    # ---- evaluation of the average ----

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate the policy as GRPOTrainer does, then the average of its weights: metrics of the
        latter begin with eval_ema/."""
        self.eval_batches = 0  # the same random numbers in every evaluation
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        # Of several data sets, GRPOTrainer calls this method for each.
        if self.ema is None or self.evaluates_average or isinstance(eval_dataset, dict):
            return metrics
        self.eval_batches, self.policy_sampler.vllm_step = 0, -1
        self.evaluates_average = True
        try:
            with self.ema.applied():
                averaged = super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_ema")
        finally:
            self.evaluates_average, self.policy_sampler.vllm_step = False, -1
        return metrics | averaged

    # ---- log ----

    @property
    def log_metrics(self) -> PPOLog:
        """Metrics of training or of evaluation for the next row of the log."""
        return PPOLog(self.metrics, self.accelerator)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as GRPOTrainer does, with tokens per second and the count of non-finite numbers."""
        metrics = self._metrics["train"]
        seconds = sum(metrics.get("step_time", ()))  # sampling, rewards and updates
        if self.model.training and seconds:
            metrics["tokens_per_second"].append(sum(metrics.pop(SAMPLED_TOKENS, ())) / seconds)
            metrics["not_finite"].append(self.nonfinite.total)
        if self.evaluates_average:  # GRPOTrainer puts eval_ before these names
            found = dict(self.metrics)
            self.metrics.clear()
            self.metrics.update({f"ema/{name}": values for name, values in found.items()})
        super().log(logs, start_time)

    def _write_samples(self, samples: Samples) -> None:
        if not self.args.log_samples:
            return
        own = sample_rows(self.args.log_samples, samples.questions_B, samples.texts, samples.scored)
        rows = gather_samples(own, self.accelerator)
        if not self.accelerator.is_main_process:
            return
        step = self.state.global_step + self.args.steps_per_rollout  # of the rollout's log row
        append(Path(self.args.output_dir) / SAMPLES_FILE, [{"step": step} | row for row in rows])
        show(self.callback_handler.callbacks, step, rows)

    # ---- checkpoints ----

    @property
    def controllers(self) -> dict[str, Controller]:
        """Objects whose state is saved with every checkpoint, by name."""
        parts: dict[str, Controller | None] = {
            "kl": self.kl,
            "target_kl": self.target_kl,
            "nonfinite": self.nonfinite,
            "curriculum": self.curriculum,
            "verifier": self.online_verifier,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save_extra_state(self, folder: Path) -> None:
        """Save the rollout and the delayed gradients as well, in the middle of a rollout."""
        super().save_extra_state(folder)
        process = self.args.process_index
        if self.ema is not None and self.args.should_save:
            run_state.save_average(folder, self.ema)
        if self.value_model is not None and self.args.should_save:
            self.value_model.save(folder)
        run_state.save_replay(folder, process, self.replay)
        if self.state.global_step % self.args.steps_per_rollout:
            run_state.save_rollout(folder, process, self.rollout_batch)
        run_state.save_delayed(folder, process, self.delayed_update)

    def load_extra_state(self, folder: Path) -> None:
        """Load what `save_extra_state` saved, and set the number of minibatches so far."""
        super().load_extra_state(folder)
        process, device = self.args.process_index, self.accelerator.device
        if self.ema is not None:
            run_state.load_average(folder, self.ema)
        run_state.load_delayed(folder, process, self.delayed_update, self.state.global_step)
        run_state.load_replay(folder, process, self.replay)
        if self.value_model is not None:
            self.value_model.load(folder)
        self.minibatch_step = self.state.global_step
        if self.state.global_step % self.args.steps_per_rollout:
            self.rollout_batch = run_state.load_rollout(
                folder, process, self.args.world_size, device
            )
