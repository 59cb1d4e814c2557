"""Stage 3: train the SFT model with PPO; programs that check its answers give the reward.

accelerate launch stages/ppo.py --config configs/nano/ppo.yaml
accelerate launch stages/ppo.py --config configs/small/ppo.yaml --preset vapo

A preset of configs/presets has the fields that neither configuration nor command line gives.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from pipeline.runtime import one_line_errors, prepare_cpu, terminate_with_launcher

prepare_cpu()

from datasets import Dataset  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

from pipeline.chat.prompt_settings import stored_prompt  # noqa: E402
from pipeline.chat.prompts import encode_prompts  # noqa: E402
from pipeline.chat.tags import END_THINK  # noqa: E402
from pipeline.chat.template import set_default_thinking  # noqa: E402
from pipeline.cli import CommandParser  # noqa: E402
from pipeline.config import (  # noqa: E402
    DataConfig,
    ModelConfig,
    RewardConfig,
    StageConfig,
    require,
)
from pipeline.config_files import packaged_config  # noqa: E402
from pipeline.data.few_shot import apply_prompt  # noqa: E402
from pipeline.data.sft_examples import sft_dataset  # noqa: E402
from pipeline.folder_lock import lock_folder, without_new_folder  # noqa: E402
from pipeline.generation import Sampler  # noqa: E402
from pipeline.hub import HubPush  # noqa: E402
from pipeline.model import freeze_layers, lora_config, save_policy  # noqa: E402
from pipeline.model.atomic import weights_fingerprint  # noqa: E402
from pipeline.model.loading import check_loading  # noqa: E402
from pipeline.ppo.config import PPOConfig  # noqa: E402
from pipeline.ppo.rollout import reward_parts  # noqa: E402
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer  # noqa: E402
from pipeline.ppo.value_model import VALUE_MODEL_FOLDER  # noqa: E402
from pipeline.records import Problem  # noqa: E402
from pipeline.rewards import Rubric  # noqa: E402
from pipeline.sft.tags import SAMPLES, closed_share, warn_of_open_thoughts  # noqa: E402
from pipeline.sft.trainer import ReasoningSFTConfig  # noqa: E402
from stages import sft  # noqa: E402
from stages.common import (  # noqa: E402
    end_processes,
    energy_of,
    finish_training,
    fitting_length,
    load_model,
    parse,
    prepare_output,
    save_final_policy,
    settings_to_compare,
    writing_result,
)
from stages.example_view import ppo_view  # noqa: E402
from stages.next_steps import evaluation_after  # noqa: E402
from stages.preflight import check_start, require_no_evaluation  # noqa: E402
from stages.publish import finish_push, print_plan, push_callbacks, training_push  # noqa: E402
from stages.training_problems import describe, take_examples, training_problems  # noqa: E402

DEFAULT_CONFIG = "configs/nano/ppo.yaml"
PRESETS = "configs/presets"
# Fields of ModelConfig for new models.
WITHOUT_EFFECT = (
    "nano_hidden_size",
    "nano_layers",
    "nano_heads",
    "nano_intermediate_size",
    "nano_rope_theta",
    "nano_window",
    "nano_vocab_size",
)
REFUSED = ("lora_dropout", "streaming", "think")  # those for SFT


def run(
    model_config: ModelConfig,
    data: DataConfig,
    reward: RewardConfig,
    args: PPOConfig,
    stage: StageConfig | None = None,
    push: HubPush | None = None,
) -> Path:
    """Train, save one checkpoint folder, return it. No other run may write there meanwhile."""
    dry_run = stage is not None and stage.dry_run
    with (without_new_folder if dry_run else lock_folder)(args.output_dir):
        return _run(model_config, data, reward, args, stage, push)


def _run(
    model_config: ModelConfig,
    data: DataConfig,
    reward: RewardConfig,
    args: PPOConfig,
    stage: StageConfig | None,
    push: HubPush | None,
) -> Path:
    start = time.perf_counter()
    dry_run = stage is not None and stage.dry_run
    rubric = Rubric(reward.weights())
    require(
        model_config.model != "nano",
        "model=nano is untrained, and PPO starts from an SFT checkpoint; "
        "give --model runs/nano/sft",
    )
    require(data.think, "think=false trains on answers alone, which is SFT; leave it out for PPO")
    require(
        not data.streaming,
        "streaming=true is for SFT: PPO draws its questions from all rows; leave it out, and give "
        "--size N to read the first N rows only",
    )
    require(
        model_config.lora_dropout == 0 or not args.disable_dropout,
        f"lora_dropout={model_config.lora_dropout} does nothing in PPO, which trains without "
        "dropout; leave it out",
    )
    require_no_evaluation(args, "stages.ppo")
    check_loading(model_config)
    missing_sft = _missing_sft(model_config)
    checkpoint = check_start(
        model_config, args, stage, model_follows=missing_sft is not None, training="PPO"
    )
    if missing_sft is not None:
        sft.run(*missing_sft, StageConfig(dry_run=dry_run))
        if dry_run:
            return Path(args.output_dir)
    problems = training_problems(data, args.seed)
    examples, problems = take_examples(data, problems)
    model, tokenizer = load_model(model_config, value_head="new")
    apply_prompt(tokenizer, data, examples=examples)
    set_default_thinking(tokenizer, True)  # PPO trains thoughts, also after SFT without them
    _check_room(model, tokenizer, problems, args)
    _check_own_rewards(rubric, problems[0])
    if not dry_run:
        _check_thoughts_close(model, tokenizer, problems, args)
    args.reward_weights = rubric.weights_list()
    # TRL loads the reference by the name of the model alone.
    reference = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
    }
    reference = {k: v for k, v in reference.items() if v is not None}
    args.model_init_kwargs = {**(args.model_init_kwargs or {}), **reference} or None
    freeze_layers(model, model_config.frozen_layers)
    begun_with = weights_fingerprint(model)
    trainer = ReasoningPPOTrainer(
        model,
        rubric.functions(),
        args,
        problems=problems,
        step_rewards=rubric.step_function(),
        supervised=_worked_solutions(tokenizer, problems, args, fitting_length(model)),
        processing_class=tokenizer,
        peft_config=lora_config(model_config, model, tokenizer),
        callbacks=push_callbacks(args, push),
    )
    work = f"PPO on {describe(problems)}: {args.num_rollouts} rollouts of {args.rollout_size}"
    # The model it began with is the reference that KL is measured from, and what adapters stand on.
    stays = model_config.use_peft or args.kl_coef
    trainer.also_decided_by(
        settings_to_compare(trainer, model_config, data, begun_with if stays else None)
        | {"rewards": reward.rewards}
        | stored_prompt(tokenizer).as_dict()
    )
    prepare_output(trainer, checkpoint, stage)
    if dry_run:
        print_plan(trainer, push, work)
        print(ppo_view(tokenizer, problems[0]))
        return Path(args.output_dir)
    print(work)
    with energy_of(trainer, stage, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    folder = Path(args.output_dir)
    with writing_result(folder, push):
        if trainer.ema is not None:  # first: the final export merges adapters in place
            with trainer.ema.applied():
                save_final_policy(trainer, tokenizer, folder / "ema", keep=True)
        save_final_policy(trainer, tokenizer, folder)
        if trainer.value_model is not None and trainer.accelerator.is_main_process:
            save_policy(trainer.value_model.model, tokenizer, folder / VALUE_MODEL_FOLDER)
        rewards = [row.get("reward") for row in trainer.state.log_history]
        rewards = [round(value, 3) for value in rewards if value is not None]
        figures: dict[str, object] = {"reward, first and last": rewards[:1] + rewards[-1:]}
        if trainer.ema is not None:
            figures["average of the weights"] = folder / "ema"
        following = evaluation_after(folder, data)
        configs = {"model": model_config, "data": data, "reward": reward, "ppo": args}
        finish_training(trainer, "PPO checkpoint", figures, following, start=start, **configs)
    return folder


def _worked_solutions(
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    args: PPOConfig,
    max_length: int | None,
) -> Dataset | None:
    """Return the problems with a thought as SFT rows of at most max_length tokens; None where
    supervised_coef is 0."""
    if not args.supervised_coef:
        return None
    solved = [problem for problem in problems if problem.thought]
    rows, too_long = sft_dataset(tokenizer, solved, max_length=max_length, progress=False)
    if too_long:
        print(f"{too_long:,} worked solutions longer than {max_length} tokens: left out")
    return rows


def _missing_sft(
    model_config: ModelConfig,
) -> tuple[ModelConfig, DataConfig, ReasoningSFTConfig] | None:
    """The configurations of nano's SFT stage where `model` is its checkpoint and is missing or
    unfinished; else None."""
    folder = Path(model_config.model)
    if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        return None
    config = packaged_config(sft.DEFAULT_CONFIG)
    parser = CommandParser([ModelConfig, DataConfig, ReasoningSFTConfig])
    sft_model, data, args = parser.parse_args_and_config(["--config", str(config)])
    if Path(args.output_dir) != folder:
        return None
    state = "is unfinished" if folder.exists() else "does not exist yet"
    print(f"{folder} {state}: running the SFT stage with {config} first")
    args.push_to_hub = False  # only the PPO checkpoint is pushed
    return sft_model, data, args


def _check_thoughts_close(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    args: PPOConfig,
) -> None:
    """Warn, before the first rollout, where most thoughts of the model do not close."""
    prompts = encode_prompts(tokenizer, [p.prompt for p in problems[:SAMPLES]])
    share = closed_share(model, tokenizer, prompts, max_new_tokens=args.max_completion_length)
    warn_of_open_thoughts(
        share,
        f"run stages.sft longer or with a higher learning_rate, or raise max_completion_length="
        f"{args.max_completion_length}",
    )


def _check_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    args: PPOConfig,
) -> None:
    """Raise ValueError where a question is too long for the model, before training starts."""
    sampler = Sampler(
        model, tokenizer, temperature=args.temperature, max_new_tokens=args.max_completion_length
    )
    sampler.check_lengths(encode_prompts(tokenizer, [p.prompt for p in problems]))


def _check_own_rewards(rubric: Rubric, problem: Problem) -> None:
    """Call every reward function of the user with an empty text and with a closed thought, before
    the first rollout; RewardError names one that fails."""
    own = {name: function for name, function in rubric.functions().items() if ":" in name}
    texts = ["", f"{problem.thought or '1+1=2'}{END_THINK}{problem.answer}"]
    reward_parts(own, [problem] * len(texts), texts)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train with PPO as the command line says."""
    terminate_with_launcher()
    classes = (ModelConfig, DataConfig, RewardConfig, PPOConfig, StageConfig)
    model, data, reward, args, stage = parse(
        classes,
        DEFAULT_CONFIG,
        argv,
        presets=PRESETS,
        without_effect=WITHOUT_EFFECT,
        refused=REFUSED,
    )
    push = training_push(args, model=model, data=data, reward=reward, ppo=args)
    with nullcontext() if stage.dry_run else lock_folder(args.output_dir):
        folder = run(model, data, reward, args, stage, push)
        end_processes()
        finish_push(push, folder, stage)


if __name__ == "__main__":
    main()
