"""Rollouts of PPO in two FSDP2 processes on the CPU, and those of one process that samples for two.

A folder holds the policy to start from as `sft`, and the output of several runs. The name of an
output begins with that of one of RUNS.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from pipeline.config import ModelConfig
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import load_policy, lora_config
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.records import Rollout
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from pipeline.training.determinism import seeded_generator
from stages.common import save_final_policy
from tests.ranks import PROBLEMS, QUESTIONS, even_length

ROOT = Path(__file__).parents[1]
PROCESSES, GROUP = 2, 2
BUDGET = 96
STOP_IDS = list(range(24))  # so many that the tiny policy ends some completions early
RUNS = {
    "full": ModelConfig(),
    "lora": ModelConfig(model="sft", use_peft=True, lora_r=4, lora_alpha=16),
}


def make_trainer(
    folder: Path, name: str, rollouts: int, out: str, **options: Any
) -> ReasoningPPOTrainer:
    """PPO with one step a rollout, and a checkpoint after each; with this epsilon AdamW does not
    enlarge rounding errors."""
    policy, tokenizer = load_policy(folder / "sft")
    defaults = {
        "questions_per_rollout": 4,
        "completions_per_question": GROUP,
        "max_completion_length": BUDGET,
        "num_minibatches": 1,
        "ppo_epochs": 1,
        # In a short run with all weights trained there is no reference model.
        "kl_coef": 0.1 if rollouts > 2 or name == "lora" else 0.0,
        "learning_rate": 0.1,
        "value_learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1.0,
        "max_grad_norm": 0.0,
        "save_every": 1,
        "disable_tqdm": True,
    }
    args = PPOConfig(output_dir=str(folder / out), num_rollouts=rollouts, **{**defaults, **options})
    trainer = ReasoningPPOTrainer(
        policy,
        [even_length],
        args,
        train_dataset=QUESTIONS,
        processing_class=tokenizer,
        peft_config=lora_config(RUNS[name], policy, tokenizer),
    )
    trainer.policy_sampler.sampler.eos_ids = STOP_IDS
    trainer.collector.end_ids = STOP_IDS
    return trainer


class Send(TrainerCallback):
    """Sends a signal to this process when the step that follows `steps` others begins."""

    def __init__(self, signum: int, steps: int):
        self.signum = signum
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            os.kill(os.getpid(), self.signum)


def rollouts_of(trainer: ReasoningPPOTrainer, resume: Path | str | None = None) -> list[Batch]:
    """The training batches of a run, whose batches are kept before the update reads them."""
    kept: list[Batch] = []
    collect = trainer.collect_rollout

    def keep(rows: list[dict]) -> Batch:
        batch = collect(rows)
        kept.append({key: x.clone() for key, x in batch.items()})
        return batch

    trainer.collect_rollout = keep
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return kept


def sample_as_two_processes(trainer: ReasoningPPOTrainer) -> None:
    """Have one process draw the random numbers of each of two."""
    sample = trainer.policy_sampler.sample

    def both(questions: list[str], group: int, generator: torch.Generator) -> Rollout:
        half = len(questions) // PROCESSES
        step = trainer.state.global_step
        parts = [
            sample(questions[i * half : (i + 1) * half], group, seed(trainer, i, step))
            for i in range(PROCESSES)
        ]
        return joined(parts)

    trainer.collector.sample = both


def seed(trainer: ReasoningPPOTrainer, process: int, step: int) -> torch.Generator:
    return seeded_generator(trainer.args.seed, process, "sample", step)


def joined(parts: list[Rollout]) -> Rollout:
    """The rows of several rollouts, padded to one width: prompts on the left."""
    found = {}
    for name in vars(parts[0]):
        tensors = [getattr(part, name) for part in parts]
        if tensors[0].dim() == 2:
            width = max(x.shape[1] for x in tensors)
            left = name in ("prompt_ids_BP", "mask_prompt_BP")
            tensors = [
                torch.nn.functional.pad(
                    x, (width - x.shape[1], 0) if left else (0, width - x.shape[1])
                )
                for x in tensors
            ]
        found[name] = torch.cat(tensors)
    return Rollout(**found)


def by_sequence(batch: Batch, key: str) -> list[torch.Tensor]:
    """The rows of a tensor of a batch without their padding."""
    mask = batch["prompt_mask" if key.startswith("prompt") else "completion_mask"]
    return [row[kept] for row, kept in zip(batch[key], mask, strict=True)]


def one_process(
    folder: Path, name: str, rollouts: int, out: str, resume: Path | None = None, **options: Any
) -> list[Batch]:
    """The rollouts of one process that samples for two; its policy goes into OUT-final."""
    trainer = make_trainer(folder, name, rollouts, out, **options)
    sample_as_two_processes(trainer)
    found = rollouts_of(trainer, resume)
    save_final_policy(trainer, trainer.processing_class, folder / f"{out}-final")
    return found


def use_fsdp2_on_the_cpu() -> None:
    """accelerate would silently make plain data parallelism of FSDP2 without a GPU."""
    config = yaml.safe_load((ROOT / "configs/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ.pop("ACCELERATE_USE_CPU", None)
    for key, value in config.items():
        os.environ[key.upper()] = str(value)
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def train(
    folder: Path,
    outs: Sequence[str],
    rollouts: int,
    killed_after: int = -1,
    signalled_at: int = -1,
    **options: Any,
) -> None:
    """What a process of those does that train, resumed where there is a checkpoint.

    It writes its batches into OUT-RANK.pt, and the first process its policy into OUT-final. Of
    several runs, the last one may be killed after some rollouts, or get SIGTERM at a step.
    """
    use_fsdp2_on_the_cpu()
    for out in outs:
        trainer = make_trainer(folder, out.partition("-")[0], rollouts, out, **options)
        if trainer.accelerator.num_processes == 1:
            sample_as_two_processes(trainer)
        if out == outs[-1] and killed_after >= 0:
            trainer.add_callback(Send(signal.SIGKILL, killed_after))
        if signalled_at >= 0:
            trainer.add_callback(Send(signal.SIGTERM, signalled_at - 1))
        found = any((folder / out).glob("checkpoint-*"))
        kept = rollouts_of(trainer, "last" if found else None)
        assert trainer.is_sharded
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        torch.save(kept, folder / f"{out}-{trainer.args.process_index}.pt")
        save_final_policy(trainer, trainer.processing_class, folder / f"{out}-final")
        torch.distributed.barrier()


def make_sft_trainer(folder: Path, name: str, out: str) -> ReasoningSFTTrainer:
    """Four steps of SFT from `sft`, with a checkpoint after two; in several processes batches are
    cut into parts."""
    policy, tokenizer = load_policy(folder / "sft")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = ReasoningSFTConfig(
        output_dir=str(folder / out),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4 // processes,
        micro_batch_tokens=None if processes == 1 else 30,
        save_strategy="steps",
        save_steps=2,
        learning_rate=1e-2,
        disable_tqdm=True,
    )
    rows, _ = sft_dataset(tokenizer, PROBLEMS, progress=False)
    return ReasoningSFTTrainer(
        policy,
        args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(RUNS[name], policy, tokenizer),
    )


def train_sft(folder: Path, name: str) -> None:
    """What a process does that trains, and that resumes from the first checkpoint."""
    use_fsdp2_on_the_cpu()
    for out, resume in ((name, None), (f"{name}-resumed", folder / name / "checkpoint-2")):
        trainer = make_sft_trainer(folder, name, out)
        trainer.train(resume_from_checkpoint=resume and str(resume))
        assert trainer.is_sharded
        save_final_policy(trainer, trainer.processing_class, folder / f"{out}-final")
        torch.distributed.barrier()
