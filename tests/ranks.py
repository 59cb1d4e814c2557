"""What test_ranks.py has every process of an `accelerate launch` do.

    accelerate launch ... tests/ranks.py TASK FOLDER [WORD]

FOLDER holds the policy to start from as `sft`; what a task finds out goes there as well.
"""

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.runtime import prepare_cpu, terminate_with_launcher

prepare_cpu()

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from accelerate.utils import DistributedType, gather_object  # noqa: E402
from datasets import Dataset  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from pipeline.chat.prompts import user_message  # noqa: E402
from pipeline.data.sft_examples import sft_dataset  # noqa: E402
from pipeline.generation.kv_cache import pad_left  # noqa: E402
from pipeline.model import load_policy  # noqa: E402
from pipeline.ppo.config import PPOConfig  # noqa: E402
from pipeline.ppo.rollout import per_completion  # noqa: E402
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer  # noqa: E402
from pipeline.records import Problem, Rollout  # noqa: E402
from pipeline.scoring import score_completions  # noqa: E402
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer  # noqa: E402
from pipeline.training.reward_errors import RewardError  # noqa: E402
from stages.common import save_final_policy  # noqa: E402

PROBLEMS = [
    Problem(question=f"What is {a} + {b}?", answer=str(a + b), thought=f"{a}+{b}={a + b}")
    for a, b in [(2, 3), (40, 5), (7, 1), (31, 13), (8, 2), (600, 9), (1, 1), (12, 30)]
]
QUESTIONS = Dataset.from_list(
    [
        {"prompt": user_message(p.question), "question": p.question, "answer": p.answer}
        for p in PROBLEMS
    ]
)


def even_length(completions: list, **columns: Any) -> list[float]:
    return [float(len(message["content"]) % 2) for (message,) in completions]


def ppo(folder: Path, out: str, reward: Callable = even_length, **options: Any) -> Any:
    policy, tokenizer = load_policy(folder / "sft")
    defaults = {
        "questions_per_rollout": 4,
        "completions_per_question": 2,
        "max_completion_length": 8,
        "kl_coef": 0.1,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
    }
    args = PPOConfig(output_dir=str(folder / out), **{**defaults, **options})
    return ReasoningPPOTrainer(
        policy, [reward], args, train_dataset=QUESTIONS, processing_class=tokenizer
    )


class KeepGradients(TrainerCallback):
    """The gradients of the first optimizer step, as all processes have them."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any
    ) -> None:
        if not self.gradients:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            self.gradients = {name: p.grad.clone() for name, p in trained.items()}


def fixed_rollout(trainer: Any) -> Callable[..., Rollout]:
    """A sampler whose completions follow from the question alone, of mixed lengths, recorded by a
    policy that differs a little from the one that is trained."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer = trainer.processing_class

    def row(question: str, sibling: int) -> tuple[list[int], list[int], random.Random]:
        rng = random.Random(f"{question}/{sibling}")
        length = rng.randint(2, 8)
        ids = [rng.randrange(20, 300) for _ in range(length - 1)] + [tokenizer.eos_token_id]
        return tokenizer(question, add_special_tokens=False).input_ids, ids, rng

    @torch.no_grad()
    def sample(questions: list[str], group: int, *args: Any) -> Rollout:
        questions = per_completion(questions, group)
        rows = [row(q, questions[:index].count(q)) for index, q in enumerate(questions)]
        prompt_ids_BP, mask_prompt_BP = pad_left([ids for ids, _, _ in rows], 0)
        flipped_BC, mask_BC = pad_left([ids[::-1] for _, ids, _ in rows], 0)
        ids_BC, mask_BC = flipped_BC.flip(1), mask_BC.flip(1)
        scores = score_completions(policy, prompt_ids_BP, mask_prompt_BP, ids_BC, mask_BC)
        noise_BC = torch.zeros(mask_BC.shape)
        for index, (_, ids, rng) in enumerate(rows):
            noise_BC[index, : len(ids)] = torch.tensor([rng.gauss(0, 0.1) for _ in ids])
        return Rollout(
            prompt_ids_BP=prompt_ids_BP,
            mask_prompt_BP=mask_prompt_BP,
            completion_ids_BC=ids_BC,
            mask_completion_BC=mask_BC,
            logprobs_BC=(scores.logprobs_BC + noise_BC) * mask_BC,
            values_BC=(scores.values_BC + noise_BC) * mask_BC,
            truncated_B=torch.zeros(len(rows), dtype=torch.bool),
        )

    return sample


def ppo_gradients(folder: Path, micro: int) -> dict[str, torch.Tensor]:
    """Of micro-batches of `micro` sequences; 1: of so few tokens that there are several."""
    keep = KeepGradients()
    size = {"micro_batch_tokens": 40} if micro == 1 else {"micro_batch_size": micro}
    trainer = ppo(
        folder,
        "gradients",
        num_rollouts=1,
        num_minibatches=1,
        ppo_epochs=1,
        **size,
        max_grad_norm=1e9,
    )
    trainer.collector.sample = fixed_rollout(trainer)
    trainer.add_callback(keep)
    trainer.train()
    assert micro > 1 or len(trainer.minibatches[0]) > 1
    return keep.gradients


def sft_gradients(folder: Path, micro: int, tokens: int | None = None) -> dict[str, torch.Tensor]:
    """Of batches of `micro` rows, in parts of at most `tokens` tokens."""
    keep = KeepGradients()
    policy, tokenizer = load_policy(folder / "sft")
    args = ReasoningSFTConfig(
        output_dir=str(folder / "gradients"),
        max_steps=1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=8 // micro // int(os.environ.get("WORLD_SIZE", "1")),
        micro_batch_tokens=tokens,
        save_strategy="no",
        max_grad_norm=1e9,
        disable_tqdm=True,
    )
    rows, _ = sft_dataset(tokenizer, PROBLEMS, progress=False)
    trainer = ReasoningSFTTrainer(policy, args, train_dataset=rows, processing_class=tokenizer)
    trainer.add_callback(keep)
    trainer.train()
    if tokens is not None:
        assert len(trainer.micro_batches(next(iter(trainer.get_train_dataloader())))) > 1
    return keep.gradients


def gradients(folder: Path, rollouts: str) -> None:
    """First the gradients of a fixed rollout, then training with a look at the weights."""
    for stage, make in (("ppo", ppo_gradients), ("sft", sft_gradients)):
        for micro in (4, 1):
            found = make(folder, micro)
            if os.environ["RANK"] == "0":
                save_file(found, folder / f"{stage}-{micro}.safetensors")
    for micro in (4, 2):  # 2: batches are accumulated as well
        found = sft_gradients(folder, micro, tokens=30)
        if os.environ["RANK"] == "0":
            save_file(found, folder / f"sft-{micro}-tokens.safetensors")
    agree(folder, rollouts)


class CompareRanks(TrainerCallback):
    """Stops where a parameter of one process differs from that of another by a single bit."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        digests = gather_object([digest.hexdigest()])
        assert len(digests) == int(os.environ["WORLD_SIZE"])
        assert len(set(digests)) == 1, f"after step {state.global_step} the processes differ"


def agree(folder: Path, rollouts: str) -> None:
    """Training in which the reward of process 1 is slow."""

    def late(completions: list, **columns: Any) -> list[float]:
        time.sleep(0.05 * int(os.environ["RANK"]))
        return even_length(completions)

    options = {"num_rollouts": int(rollouts), "ppo_epochs": 2, "num_minibatches": 2}
    trainer = ppo(folder, "agree", late, **options)
    trainer.add_callback(CompareRanks())
    trainer.train()
    (folder / f"agreed-{os.environ['RANK']}").touch()


def reward_fails(folder: Path) -> None:
    """Training in which the reward function of process 1 fails in the third rollout."""

    def own(problem: Problem, text: str) -> float:
        if os.environ["RANK"] == "1" and trainer.state.global_step == 2:
            raise KeyError("late")
        return float(len(text) % 2)

    policy, tokenizer = load_policy(folder / "sft")
    args = PPOConfig(
        output_dir=str(folder / "fails"),
        questions_per_rollout=4,
        completions_per_question=2,
        max_completion_length=8,
        num_rollouts=3,
        num_minibatches=1,
        ppo_epochs=1,
        kl_coef=0.0,
        save_every=0,
        disable_tqdm=True,
    )
    trainer = ReasoningPPOTrainer(
        policy, {"own": own}, args, problems=PROBLEMS, processing_class=tokenizer
    )
    try:
        trainer.train()
    except RewardError as error:
        (folder / f"failed-{os.environ['RANK']}").write_text(str(error))


class Die(TrainerCallback):
    """What may happen to process 1 after its second step."""

    def __init__(self, way: str):
        self.way = way

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.environ["RANK"] == "1" and state.global_step == 2:
            getattr(self, self.way)()

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(self) -> None:
        raise RuntimeError("process 1 raises")

    def leaves(self) -> None:
        os._exit(0)

    def hangs(self) -> None:
        time.sleep(1000)

    def memory(self) -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        torch.ones(1 << 28)


def die(folder: Path, way: str) -> None:
    trainer = ppo(folder, "die", num_rollouts=50, num_minibatches=2, ddp_timeout=10)
    trainer.add_callback(Die(way))
    trainer.train()


class Begun(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / f"begun-{os.environ['RANK']}").write_text(str(os.getpid()))


def train(folder: Path, out: str) -> Any:
    """Twelve rollouts, from the newest checkpoint where there is one."""
    trainer = ppo(folder, out, num_rollouts=12, ppo_epochs=2, num_minibatches=2, save_every=6)
    trainer.add_callback(Begun())
    resumes = any((folder / out).glob("checkpoint-*"))
    if (folder / "slowly").exists():
        trainer.reward_funcs[0] = lambda completions, **columns: (
            time.sleep(0.3) or even_length(completions)
        )
    trainer.train(resume_from_checkpoint="last" if resumes else None)
    return trainer


def fsdp(folder: Path, out: str) -> None:
    """FSDP2 on the CPU, of which accelerate would silently make plain data parallelism."""
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    trainer = train(folder, out)
    assert trainer.is_fsdp_enabled
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    save_final_policy(trainer, trainer.processing_class, folder / out)


if __name__ == "__main__":
    terminate_with_launcher()
    tasks = {"gradients": gradients, "agree": agree, "die": die, "train": train, "fsdp": fsdp}
    task, folder, *words = sys.argv[1:]
    tasks[task](Path(folder), *(words or [""]))
