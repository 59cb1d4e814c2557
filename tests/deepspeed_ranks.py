"""SFT and PPO in two processes of `accelerate launch` under DeepSpeed, without a GPU.

    accelerate launch --config_file configs/accelerate/NAME.yaml ... THIS_FILE FOLDER NAME

FOLDER holds the policy to start from as `sft`. The trained policies go there as NAME-sft,
NAME-ppo and NAME-resumed, the last from the checkpoint of the first rollout, and the rollouts of
process R as NAME-R.pt.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.runtime import prepare_cpu, terminate_with_launcher

prepare_cpu()

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from pipeline.data.sft_examples import sft_dataset  # noqa: E402
from pipeline.model import load_policy  # noqa: E402
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer  # noqa: E402
from stages.common import save_final_policy  # noqa: E402
from tests.ranks import PROBLEMS  # noqa: E402
from tests.sharded_ranks import make_trainer, rollouts_of  # noqa: E402

STEPS = ROLLOUTS = 2


def make_sft(folder: Path, name: str, processes: int) -> ReasoningSFTTrainer:
    """SFT of all problems at every step, with SGD, whose rounding errors stay as small as they
    are; two processes in parts of so few tokens that a batch has several."""
    policy, tokenizer = load_policy(folder / "sft")
    args = ReasoningSFTConfig(
        output_dir=str(folder / name),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=len(PROBLEMS) // 2 // processes,
        micro_batch_tokens=None if processes == 1 else 30,
        save_strategy="no",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        disable_tqdm=True,
    )
    rows, _ = sft_dataset(tokenizer, PROBLEMS, progress=False)
    return ReasoningSFTTrainer(policy, args, train_dataset=rows, processing_class=tokenizer)


def use_deepspeed_on_the_cpu() -> None:
    """Without a GPU accelerate would let each process train alone, and DeepSpeed would compile its
    own all-reduce for minutes."""
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    os.environ.pop("ACCELERATE_USE_CPU", None)
    start = PartialState.__init__
    PartialState.__init__ = lambda self, cpu=False, **options: start(self, **options)
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def main(folder: Path, name: str) -> None:
    """Train both, and check that DeepSpeed does it."""
    use_deepspeed_on_the_cpu()
    trainer = make_sft(folder, f"{name}-sft", 2)
    stage = int(name.removeprefix("zero"))
    assert trainer.is_deepspeed_enabled and trainer.args.world_size == 2
    trainer.train()
    assert trainer.model_wrapped.zero_optimization_stage() == stage
    save_final_policy(trainer, trainer.processing_class, folder / f"{name}-sft")
    print("SFT done", flush=True)

    run = f"{name}-run"
    for out, resume in ((f"{name}-ppo", None), (f"{name}-resumed", folder / run / "checkpoint-1")):
        ppo = make_trainer(folder, "full", ROLLOUTS, run, kl_coef=0.1)
        rollouts = rollouts_of(ppo, resume)
        if resume is None:
            torch.save(rollouts, folder / f"{name}-{ppo.args.process_index}.pt")
        assert ppo.model_wrapped.zero_optimization_stage() == stage
        save_final_policy(ppo, ppo.processing_class, folder / out)


if __name__ == "__main__":
    terminate_with_launcher()
    main(Path(sys.argv[1]), sys.argv[2])
