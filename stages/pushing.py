"""Where the training stages meet the Hub, and what a dry run says."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from pipeline.config import StageConfig, require
from pipeline.data.sources import SOURCES
from pipeline.hub import HubPush, hub_push, model_card, read_facts, settings_worth_telling
from pipeline.runtime import run_info

# What a data set, or a suite that asks it, is called on the Hub.
HUB_NAMES = {name: source.hub for name, source in SOURCES.items() if source.hub}


def training_push(args: TrainingArguments, **configs: Any) -> HubPush | None:
    """What pushes while this training goes on; None without --push_to_hub."""
    info = run_info(**configs)
    own = settings_worth_telling(type(args))

    def card(folder: Path, repo: str, state: str) -> str:
        return model_card(read_facts(folder, own, run=info, state=state), repo, hub_names=HUB_NAMES)

    return hub_push(args, card)


def callbacks_of(args: TrainingArguments, push: HubPush | None) -> list[HubPush]:
    """What a trainer is given; it never pushes by itself."""
    require(
        not args.push_to_hub,
        "push_to_hub=True would have the Trainer upload training_args.bin; hand over the push of "
        "stages.pushing.training_push",
    )
    return [push] if push else []


def finish_push(push: HubPush | None, folder: Path, stage: StageConfig) -> None:
    """Push what a training has made; the process that trained as the first alone, and after the
    others have left: they wait for each other for less time than an upload may take."""
    if push is not None and push.is_main and not stage.dry_run:
        push.finish(folder)


def print_plan(
    args: TrainingArguments, model: PreTrainedModel, push: HubPush | None, work: str
) -> None:
    """The last lines of a dry run."""
    out = Path(args.output_dir)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    there = " (replacing the checkpoint there)" if (out / "config.json").exists() else ""
    print("\ndry run: all is loaded and checked, nothing was trained or written")
    print(f"  model: {model.num_parameters():,} parameters, {trained:,} of them trained")
    print(f"  work: {work}")
    print(f"  would be written to: {out}{there}")
    if push:
        every = "every save and the end" if push.every_save else "the end"
        print(f"  would be pushed: {every}, to {push.target.repo_id} on the Hub")
    print("next: the same command without --dry_run")
