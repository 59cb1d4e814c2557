"""Stage 3: teach the SFT model to reason with PPO, paid by programs that check its answers.

accelerate launch stages/ppo.py --config configs/nano/ppo.yaml
"""

import time
from dataclasses import asdict
from pathlib import Path

from pipeline.runtime import one_line_errors, prepare_cpu, write_run_info

prepare_cpu()

from datasets import Dataset  # noqa: E402
from transformers.trainer_utils import get_last_checkpoint  # noqa: E402
from trl import TrlParser  # noqa: E402

from pipeline.config import DataConfig, ModelConfig, RewardConfig  # noqa: E402
from pipeline.model import load_policy, save_policy  # noqa: E402
from pipeline.prompts import user_message  # noqa: E402
from pipeline.reward import Rubric  # noqa: E402
from pipeline.train.ppo import ReasoningPPOTrainer  # noqa: E402
from pipeline.train.ppo_config import PPOConfig  # noqa: E402
from pipeline.train.sft import ReasoningSFTConfig  # noqa: E402
from stages import sft  # noqa: E402
from stages.common import describe, parse, print_end, training_problems  # noqa: E402

DEFAULT_CONFIG = "configs/nano/ppo.yaml"


def run(model_config: ModelConfig, data: DataConfig, reward: RewardConfig, args: PPOConfig) -> Path:
    """Train, save one checkpoint folder, return it."""
    start = time.perf_counter()
    rubric = Rubric(reward.weights())
    _make_missing_sft(model_config, args)
    problems = training_problems(data, args.seed)
    model, tokenizer = load_policy(
        model_config.model, value_head="new", revision=model_config.model_revision
    )
    args.reward_weights = rubric.weights_list()
    trainer = ReasoningPPOTrainer(
        model,
        rubric.trl_functions(),
        args,
        step_rewards=rubric.step_function(),
        train_dataset=Dataset.from_list(
            [{"prompt": user_message(p.question), **asdict(p)} for p in problems]
        ),
        processing_class=tokenizer,
    )
    print(f"PPO on {describe(problems)}: {args.num_rollouts} rollouts of {args.rollout_size}")
    trainer.train(resume_from_checkpoint=_checkpoint(args))
    folder = Path(args.output_dir)
    if trainer.accelerator.is_main_process:
        save_policy(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)
        write_run_info(folder, model=model_config, data=data, reward=reward, ppo=args)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        log = [row for row in trainer.state.log_history if "reward" in row]
        figures = {"reward, first and last": [round(log[i]["reward"], 3) for i in (0, -1)]}
        figures["minutes"] = round((time.perf_counter() - start) / 60, 1)
        following = (
            f"python -m eval.run --checkpoint {folder} --suite nano --output_dir {folder}/eval"
        )
        print_end("PPO checkpoint", folder, figures, following)
    trainer.accelerator.wait_for_everyone()
    return folder


def _make_missing_sft(model_config: ModelConfig, args: PPOConfig) -> None:
    """Run the nano SFT stage where the nano configuration names a checkpoint not made yet."""
    config = Path(sft.DEFAULT_CONFIG)
    if Path(model_config.model).exists() or not config.exists():
        return
    parser = TrlParser([ModelConfig, DataConfig, ReasoningSFTConfig])
    configs = parser.parse_args_and_config(["--config", str(config)])
    if Path(configs[-1].output_dir) == Path(model_config.model):
        print(f"{model_config.model} does not exist yet: running the SFT stage with {config} first")
        sft.run(*configs)


def _checkpoint(args: PPOConfig) -> str | None:
    """The checkpoint to resume from; "last" is the newest one of the output folder."""
    if args.resume_from_checkpoint != "last":
        return args.resume_from_checkpoint
    found = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if found is None:
        raise FileNotFoundError(
            f"resume_from_checkpoint=last, but {args.output_dir} holds no checkpoint-N; "
            "start without it"
        )
    return found


@one_line_errors
def main() -> None:
    run(*parse((ModelConfig, DataConfig, RewardConfig, PPOConfig), DEFAULT_CONFIG))


if __name__ == "__main__":
    main()
