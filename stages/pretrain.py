"""Stage 1: language modelling of nano from scratch, or continued from any checkpoint.

accelerate launch stages/pretrain.py --config configs/nano/pretrain.yaml
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import IntervalStrategy, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.runtime import one_line_errors, prepare_cpu, terminate_with_launcher

prepare_cpu()

from pipeline.config import ModelConfig, StageConfig, require  # noqa: E402
from pipeline.folder_lock import lock_folder, without_new_folder  # noqa: E402
from pipeline.hosts import only_main_prints  # noqa: E402
from pipeline.hub import HubPush  # noqa: E402
from pipeline.model import freeze_layers  # noqa: E402
from pipeline.model.loading import check_loading  # noqa: E402
from pipeline.pretrain.config import PretrainConfig, PretrainDataConfig  # noqa: E402
from pipeline.pretrain.dataset import packed_blocks, split_documents  # noqa: E402
from pipeline.pretrain.trainer import PretrainTrainer  # noqa: E402
from pipeline.records import Problem  # noqa: E402
from stages.common import (  # noqa: E402
    end_processes,
    energy_of,
    finish_training,
    parse,
    prepare_output,
    save_final_policy,
    settings_to_compare,
    start_model,
    training_length,
    writing_result,
)
from stages.next_steps import sft_after  # noqa: E402
from stages.preflight import check_start  # noqa: E402
from stages.publish import finish_push, print_plan, push_callbacks, training_push  # noqa: E402
from stages.training_problems import problem_stream, training_problems  # noqa: E402

DEFAULT_CONFIG = "configs/nano/pretrain.yaml"
TOKENIZER_TEXTS = 5000  # first documents that nano's tokenizer is trained on
# Fields of prompts and adapters.
REFUSED = ("few_shot", "system_prompt", "use_peft", "load_in_4bit")
WITHOUT_EFFECT = (
    "chat_template",
    *("bnb_4bit_quant_type", "use_bnb_nested_quant"),
    *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
)


def run(
    model_config: ModelConfig,
    data: PretrainDataConfig,
    args: PretrainConfig,
    stage: StageConfig | None = None,
    push: HubPush | None = None,
) -> Path:
    """Train, save one checkpoint folder, return it. No other run may write there meanwhile."""
    dry_run = stage is not None and stage.dry_run
    with (without_new_folder if dry_run else lock_folder)(args.output_dir):
        return _run(model_config, data, args, stage, push)


def _run(
    model_config: ModelConfig,
    data: PretrainDataConfig,
    args: PretrainConfig,
    stage: StageConfig | None,
    push: HubPush | None,
) -> Path:
    start = time.perf_counter()
    require(
        not data.streaming or args.max_steps > 0, "streaming=true has no length; give max_steps"
    )
    require(
        not model_config.use_peft,
        "use_peft=true trains few weights, and pretraining all of them; leave it out, or give it "
        "to stages.sft",
    )
    check_loading(model_config)
    checkpoint = check_start(model_config, args, stage)
    with only_main_prints():
        model, tokenizer, train, held_out = _prepare(model_config, data, args)
    if not isinstance(train, IterableDataset):
        args.check_decay(args.steps_of(len(train)))
    if held_out is None:
        args.eval_strategy = IntervalStrategy.NO
    freeze_layers(model, model_config.frozen_layers)
    trainer = PretrainTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=push_callbacks(args, push),
    )
    trainer.also_decided_by(settings_to_compare(trainer, model_config, data, None))
    prepare_output(trainer, checkpoint, stage)
    if stage is not None and stage.dry_run:
        size = "a stream of" if isinstance(train, IterableDataset) else f"{len(train):,}"
        work = f"pretraining on {size} blocks of {args.max_length} tokens, {training_length(args)}"
        print_plan(trainer, push, work)
        print(f"first block: {tokenizer.decode(next(iter(train))['input_ids'])[:500]!r}")
        return Path(args.output_dir)
    with energy_of(trainer, stage, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    folder = Path(args.output_dir)
    with writing_result(folder, push):
        measured = trainer.last_perplexity()
        save_final_policy(trainer, tokenizer, folder)
        last = [row["loss"] for row in trainer.state.log_history if "loss" in row][-1:]
        figures = {name: round(loss, 4) for name, loss in zip(["loss"], last, strict=False)}
        if measured is not None:
            figures["held-out perplexity"] = round(measured, 3)
        made, following = "pretrained checkpoint", sft_after(folder, data)
        configs = {"model": model_config, "data": data, "pretrain": args}
        finish_training(trainer, made, figures, following, start=start, **configs)
    return folder


def _prepare(
    model_config: ModelConfig, data: PretrainDataConfig, args: PretrainConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Dataset | IterableDataset, Dataset | None]:
    """Return (model, tokenizer, blocks to train on, held-out blocks)."""
    if data.streaming:
        documents = split_documents(problem_stream(data, args.seed), data)
    else:
        problems = training_problems(data, args.seed)
        documents = split_documents(lambda: problems, data)
    dropped = ", ".join(f"{n:,} {degree}" for degree, n in documents.dropped.items()) or "none"
    print(f"repeated documents dropped{' so far' * data.streaming}: {dropped}")
    texts = islice(documents.train(), TOKENIZER_TEXTS)
    model, tokenizer = start_model(
        model_config, [Problem(question=text, answer="") for text in texts], args.seed
    )
    window = getattr(model.config, "max_position_embeddings", None)
    require(
        window is None or args.max_length <= window,
        f"max_length={args.max_length} must be at most {window}, the context window of the model",
    )
    require(
        tokenizer.eos_token_id is not None,
        f"the tokenizer of {model_config.model} has no end token to put between documents; set its "
        "eos_token",
    )
    train, held_out = packed_blocks(
        documents, tokenizer, data, max_length=args.max_length, seed=args.seed
    )
    size = "a stream of" if isinstance(train, IterableDataset) else f"{len(train):,}"
    print(
        f"training on {size} blocks of {args.max_length} tokens; {len(documents.held_out):,} "
        "documents held out"
    )
    return model, tokenizer, train, held_out


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Pretrain as the command line says."""
    terminate_with_launcher()
    classes = (ModelConfig, PretrainDataConfig, PretrainConfig, StageConfig)
    model, data, args, stage = parse(
        classes, DEFAULT_CONFIG, argv, without_effect=WITHOUT_EFFECT, refused=REFUSED
    )
    push = training_push(args, model=model, data=data, pretrain=args)
    with nullcontext() if stage.dry_run else lock_folder(args.output_dir):
        folder = run(model, data, args, stage, push)
        end_processes()
        finish_push(push, folder, stage)


if __name__ == "__main__":
    main()
