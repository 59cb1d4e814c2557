"""Stage 2: supervised fine-tuning of a causal LM on worked solutions between reasoning tags.

accelerate launch stages/sft.py --config configs/nano/sft.yaml
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.runtime import one_line_errors, prepare_cpu, terminate_with_launcher

prepare_cpu()

from pipeline.chat.template import set_default_thinking  # noqa: E402
from pipeline.config import DataConfig, ModelConfig, StageConfig, require  # noqa: E402
from pipeline.data.few_shot import apply_prompt  # noqa: E402
from pipeline.data.sft_examples import sft_dataset, sft_stream  # noqa: E402
from pipeline.folder_lock import lock_folder, without_new_folder  # noqa: E402
from pipeline.hosts import only_main_prints  # noqa: E402
from pipeline.hub import HubPush  # noqa: E402
from pipeline.model import freeze_layers, has_reasoning_layer, lora_config  # noqa: E402
from pipeline.model.atomic import weights_fingerprint  # noqa: E402
from pipeline.model.loading import check_loading  # noqa: E402
from pipeline.records import Problem  # noqa: E402
from pipeline.sft.tags import (  # noqa: E402
    EXAMPLES,
    SAMPLES,
    closed_share,
    fit_end_think,
    warn_of_open_thoughts,
)
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer  # noqa: E402
from stages.common import (  # noqa: E402
    end_processes,
    energy_of,
    finish_training,
    fitting_length,
    parse,
    prepare_output,
    save_final_policy,
    settings_to_compare,
    start_model,
    training_length,
    writing_result,
)
from stages.example_view import sft_view  # noqa: E402
from stages.next_steps import ppo_after  # noqa: E402
from stages.preflight import check_start, require_no_evaluation  # noqa: E402
from stages.publish import finish_push, print_plan, push_callbacks, training_push  # noqa: E402
from stages.training_problems import (  # noqa: E402
    describe,
    problem_stream,
    take_examples,
    training_problems,
    with_thoughts,
)

DEFAULT_CONFIG = "configs/nano/sft.yaml"


def run(
    model_config: ModelConfig,
    data: DataConfig,
    args: ReasoningSFTConfig,
    stage: StageConfig | None = None,
    push: HubPush | None = None,
    *,
    problems: list[Problem] | None = None,
    following: str | None = None,
) -> Path:
    """Train, save one checkpoint folder, return it. No other run may write there meanwhile.

    Args:
        problems: what to train on; default: what `data` says.
        following: the next command to print; "": none; default: that of PPO.
    """
    dry_run = stage is not None and stage.dry_run
    with (without_new_folder if dry_run else lock_folder)(args.output_dir):
        return _run(model_config, data, args, stage, push, problems, following)


def _check(data: DataConfig, args: ReasoningSFTConfig) -> None:
    """Refuse options that exclude each other, and an evaluation during training.

    A batch's loss is the mean over its thought tokens plus that over its answer tokens. In a batch
    of empty thoughts alone, as grouping by length makes them, </think> would be the whole of the
    first mean, and the model would learn a far larger share of empty thoughts than it was shown.
    """
    require_no_evaluation(args, "stages.sft")
    grouped = args.train_sampling_strategy == "group_by_length"
    if data.streaming:
        require(args.max_steps > 0, "streaming=true has no length; give max_steps")
        require(
            not grouped,
            "streaming=true cannot group by length; leave train_sampling_strategy out",
        )
    require(
        data.direct_share == 0 or data.think,
        f"direct_share={data.direct_share} is a share of thoughts, and think=false trains none; "
        "leave one of them out",
    )
    require(
        data.direct_share == 0 or not grouped,
        f"direct_share={data.direct_share} with train_sampling_strategy=group_by_length makes "
        "batches of empty thoughts alone, which distorts the share that is learned; give "
        "--train_sampling_strategy random",
    )


def _run(
    model_config: ModelConfig,
    data: DataConfig,
    args: ReasoningSFTConfig,
    stage: StageConfig | None,
    push: HubPush | None,
    problems: list[Problem] | None,
    following: str | None,
) -> Path:
    start = time.perf_counter()
    dry_run = stage is not None and stage.dry_run
    _check(data, args)
    check_loading(model_config)
    checkpoint = check_start(model_config, args, stage)
    with only_main_prints():
        model, tokenizer, dataset = _prepare(model_config, data, args, problems)
    thinks = data.think and (args.max_steps > 0 or args.num_train_epochs > 0)
    fits_tags = thinks and model_config.model != "nano" and not has_reasoning_layer(model)
    if fits_tags and (not dry_run or checkpoint is not None):
        with only_main_prints():
            _fit_tags(model, tokenizer, dataset)
    freeze_layers(model, model_config.frozen_layers)
    begun_with = weights_fingerprint(model)
    trainer = ReasoningSFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(model_config, model, tokenizer),
        callbacks=push_callbacks(args, push),
    )
    trainer.also_decided_by(
        settings_to_compare(
            trainer, model_config, data, begun_with if model_config.use_peft else None
        )
    )
    prepare_output(trainer, checkpoint, stage)
    if dry_run:
        size = "a stream of" if data.streaming else f"{len(dataset):,}"
        print_plan(trainer, push, f"SFT on {size} examples, {training_length(args)}")
        print(sft_view(tokenizer, next(iter(dataset))))
        return Path(args.output_dir)
    with energy_of(trainer, stage, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    folder = Path(args.output_dir)
    with writing_result(folder, push):
        sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        with only_main_prints():
            closed = _closed_share(trainer, tokenizer, dataset) if thinks and not sharded else None
        save_final_policy(trainer, tokenizer, folder)
        last = [row for row in trainer.state.log_history if "loss" in row][-1:]
        figures = {k: round(v, 4) for row in last for k, v in row.items() if "loss" in k}
        if closed is not None:
            figures["closed thoughts"] = round(closed, 3)
        if following is None:
            count = None if data.streaming else len(dataset)
            following = ppo_after(folder, model_config, data, count)
        configs = {"model": model_config, "data": data, "sft": args}
        finish_training(trainer, "SFT checkpoint", figures, following, start=start, **configs)
    return folder


def _fit_tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset | IterableDataset
) -> None:
    """Fit the row of </think> to the first examples, where the model does not know it yet."""
    rows = _some(dataset, EXAMPLES)
    fit = fit_end_think(model, tokenizer, rows)
    if fit is not None and fit.after != fit.before:
        print(
            f"the row of </think> was fitted to {len(rows)} examples: its mean probability at the "
            f"end of their thoughts went from {fit.before:.3f} to {fit.after:.3f}"
        )


def _some(dataset: Dataset | IterableDataset, count: int) -> list[dict[str, list[int]]]:
    """At most `count` rows: evenly spread over a data set, the first ones of a stream."""
    if isinstance(dataset, IterableDataset):
        return list(islice(dataset, count))
    step = max(1, len(dataset) // count)
    return list(dataset.select(range(0, len(dataset), step)))[:count]


def _closed_share(
    trainer: ReasoningSFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | IterableDataset,
) -> float:
    """Share of closed thoughts of a few greedy samples for trained questions; warns if low."""
    rows = _some(dataset, SAMPLES)
    prompts = [row["input_ids"][: row["completion_mask"].index(1)] for row in rows]
    longest = max(len(row["input_ids"]) - len(p) for row, p in zip(rows, prompts, strict=True))
    share = closed_share(
        trainer.accelerator.unwrap_model(trainer.model),
        tokenizer,
        prompts,
        max_new_tokens=2 * longest,
    )
    warn_of_open_thoughts(share, "train longer or with a higher learning_rate before PPO")
    return share


def _prepare(
    model_config: ModelConfig,
    data: DataConfig,
    args: ReasoningSFTConfig,
    problems: list[Problem] | None,
) -> tuple:
    """Return (model, tokenizer, examples)."""
    if data.streaming:
        return _prepare_stream(model_config, data, args)
    if problems is None:
        problems = with_thoughts(training_problems(data, args.seed), data)
    examples, problems = take_examples(data, problems)
    model, tokenizer = start_model(model_config, problems, args.seed)
    apply_prompt(tokenizer, data, examples=examples, think=data.think)
    set_default_thinking(tokenizer, data.think)
    max_length = fitting_length(model, args.max_length)
    dataset, too_long = sft_dataset(
        tokenizer,
        problems,
        think=data.think,
        max_length=max_length,
        processes=data.processes,
    )
    print(f"training on {describe(problems)}; {too_long} longer than {max_length} tokens")
    return model, tokenizer, dataset


def _prepare_stream(model_config: ModelConfig, data: DataConfig, args: ReasoningSFTConfig) -> tuple:
    """Return the same for a stream; nano's tokenizer is trained on its first problems."""
    stream = problem_stream(data, args.seed)
    first = with_thoughts(list(islice(stream(), 5000)), data)
    examples, _ = take_examples(data, first)
    shown = {(problem.turns, problem.question) for problem in examples or ()}
    model, tokenizer = start_model(model_config, first, args.seed)
    apply_prompt(tokenizer, data, examples=examples, think=data.think)
    set_default_thinking(tokenizer, data.think)

    def unseen(problems: Iterable[Problem]) -> Iterator[Problem]:
        return (p for p in problems if (p.turns, p.question) not in shown)

    max_length = fitting_length(model, args.max_length)
    encode = partial(sft_stream, tokenizer, think=data.think, max_length=max_length)
    require(
        next(iter(encode(lambda: unseen(first))), None) is not None,
        f"max_length={max_length} leaves none of the first {len(first):,} examples of "
        f"dataset={data.dataset}; raise max_length or give more problems",
    )
    dataset = encode(lambda: unseen(stream()))
    return model, tokenizer, dataset


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train on worked solutions as the command line says."""
    terminate_with_launcher()
    classes = (ModelConfig, DataConfig, ReasoningSFTConfig, StageConfig)
    model, data, args, stage = parse(classes, DEFAULT_CONFIG, argv)
    push = training_push(args, model=model, data=data, sft=args)
    with nullcontext() if stage.dry_run else lock_folder(args.output_dir):
        folder = run(model, data, args, stage, push)
        end_processes()
        finish_push(push, folder, stage)


if __name__ == "__main__":
    main()
