"""Publish a checkpoint on the Hub, with a model card of its training and its evaluations.

    python -m stages.publish --checkpoint runs/nano/ppo --repo_id user/name --dry_run true
    python -m stages.publish --checkpoint runs/nano/ppo --repo_id user/name

The token comes from HF_TOKEN or `hf auth login`. Only files of a checkpoint are uploaded. Settings
on the card are from its run.json, figures from the metrics.json of its evaluations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer, TrainingArguments
from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import Required, StageConfig, check_types, require
from pipeline.data import is_own_data
from pipeline.data.registry import SOURCES
from pipeline.device import DTYPES
from pipeline.hub import (
    Facts,
    HubPush,
    card_settings,
    hub_push,
    model_card,
    plan_upload,
    publish,
    publish_command,
    read_facts,
)
from pipeline.hub.facts import default_evaluation_folder, read_evaluations
from pipeline.hub.publish import PublishError
from pipeline.hub.upload import Upload
from pipeline.model import load_policy
from pipeline.model.atomic import weights_fingerprint
from pipeline.model.inference import cast
from pipeline.runtime import one_line_errors, run_info, set_threads
from stages.next_steps import command, suites_of

# {data set or suite here: its name on the Hub}
HUB_NAMES = {name: source.hub for name, source in SOURCES.items() if source.hub}


@dataclass(kw_only=True)
class PublishConfig:
    """The checkpoint to publish, the repository, and the contents of the card."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder to publish")
    repo_id: Required = HfArg(default="", help="user/name on the Hub; created if missing")
    private: bool = HfArg(default=False, help="make a new repository private")
    revision: str | None = HfArg(default=None, help="branch to publish to; default: main")
    metrics: str | None = HfArg(
        default=None,
        help="folder with the metrics.json of this checkpoint's evaluations; "
        "default: CHECKPOINT/eval, else eval/NAME beside it",
    )
    base_model: str | None = HfArg(
        default=None, help="name on the Hub of the base model of adapters, if they name a folder"
    )
    license: str | None = HfArg(default=None, help="licence to state, such as apache-2.0")
    card: str | None = HfArg(
        default=None, help="file to use as README.md instead of the generated card"
    )
    message: str = HfArg(default="Checkpoint and card", help="title of the commit")
    dry_run: bool = HfArg(default=False, help="show the files and the card, publish nothing")

    def __post_init__(self) -> None:
        check_types(self)
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError:
            raise ValueError(
                f"repo_id={self.repo_id!r} is no name of a repository; give user/name, of letters, "
                "digits, '-', '_' and '.'"
            ) from None
        if self.card is not None and not Path(self.card).is_file():
            raise FileNotFoundError(f"card={self.card} does not exist; give a Markdown file")


def run(config: PublishConfig) -> str | None:
    """Publish the checkpoint; return the URL of the commit, None for a dry run."""
    folder = Path(config.checkpoint)
    plan = plan_upload(folder, base_model=config.base_model)
    card = make_card(folder, config)
    if config.dry_run:
        print(card(config.repo_id))
        print("--- dry run: nothing was published. These files would be uploaded:")
        for name, content in plan.items():
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            print(f"  {name}  {size:,} bytes")
        where = f"branch {config.revision} of " if config.revision else ""
        print(f"to {where}{config.repo_id}, with the card above as README.md")
        return None
    try:
        address = publish(
            plan,
            card,
            config.repo_id,
            private=config.private,
            revision=config.revision,
            message=config.message,
        )
    except PublishError as error:
        again = publish_command(
            folder, config.repo_id, private=config.private, revision=config.revision
        )
        raise PublishError(f"{error}. The checkpoint is untouched; again: {again}") from error
    _print_end(config, plan, address)
    return address


def make_card(folder: Path, config: PublishConfig) -> Callable[[str], str]:
    """A function from the repository's name to README.md: the user's file or a generated card."""
    if config.card is not None:
        own = Path(config.card).read_text(encoding="utf-8")
        return lambda repo: own
    facts = collect_facts(folder, config.metrics, config.base_model)
    return lambda repo: model_card(
        facts, repo, hub_names=_hub_names(facts), license=config.license, suites=_suites(facts)
    )


def collect_facts(folder: Path, metrics: str | None = None, base_model: str | None = None) -> Facts:
    """The facts of a checkpoint for its card, with the evaluations of these weights."""
    # Imported here because TRL takes seconds: a mistyped argument is reported before.
    from pipeline.ppo.config import PPOConfig
    from pipeline.rft.config import RFTConfig
    from pipeline.sft.trainer import ReasoningSFTConfig
    from pipeline.verifier.offline import VerifierConfig

    where = Path(metrics) if metrics is not None else default_evaluation_folder(folder)
    require(metrics is None or where.is_dir(), f"metrics={metrics} is no folder; give one")
    evaluations: list = []
    if where.is_dir():
        evaluations, others = read_evaluations(where, cache(partial(_fingerprint, folder)))
        if others:
            print(f"{others} evaluations in {where} are of other weights: left out of the card")
    own = card_settings(PPOConfig, ReasoningSFTConfig, RFTConfig, VerifierConfig)
    facts = read_facts(folder, own, evaluations=evaluations)
    return replace(facts, base=base_model) if base_model else facts


def _fingerprint(folder: Path, dtype: str) -> str:
    """The fingerprint of the weights of a checkpoint in a dtype; of the stored ones for "" and for
    quantized models."""
    model, _ = load_policy(folder, value_head="optional")
    if dtype in DTYPES and getattr(model, "quantization_method", None) is None:
        cast(model, DTYPES[dtype])
    return weights_fingerprint(model)


def _print_end(config: PublishConfig, plan: Upload, address: str) -> None:
    at = f"@{config.revision}" if config.revision else ""
    print(f"\npublished: {address}")
    print(f"  files: {len(plan) + 1}, the card among them")
    evaluation = command(
        "eval.run",
        checkpoint=f"{config.repo_id}{at}",
        suite=",".join(_suites(read_facts(Path(config.checkpoint)))),
        output_dir="runs/published",
    )
    print(f"next: {evaluation}")


def _suites(facts: Facts) -> list[str]:
    """The suites for a checkpoint: those of its training data, else those it was measured on that
    others have too, else nano."""
    measured = [str(evaluation["suite"]) for evaluation in facts.evaluations]
    known = [name for name in dict.fromkeys(measured) if not is_own_data(name)]
    return _suites_of_data(facts.dataset) or known or ["nano"]


def _suites_of_data(dataset: str) -> list[str]:
    """`suites_of` a mixture whose files may have one name, without their folders."""
    return list(dict.fromkeys(s for part in dataset.split(",") for s in suites_of(part)))


def _hub_names(facts: Facts) -> dict[str, str]:
    """HUB_NAMES, and the data sets of users on the Hub that the training read."""
    given = [str(step.data.get("dataset", "nano")) for step in facts.steps]
    on_hub = [name for dataset in given for name in _suites_of_data(dataset) if "/" in name]
    return HUB_NAMES | {name: name for name in on_hub if not Path(name).parent.is_dir()}


def training_push(args: TrainingArguments, **configs: object) -> HubPush | None:
    """The callback that uploads checkpoints during this training; None without --push_to_hub."""
    info = run_info(**configs)
    own = card_settings(type(args))

    def card(folder: Path, repo: str, state: str) -> str:
        facts = read_facts(folder, own, run=info, state=state)
        return model_card(facts, repo, hub_names=_hub_names(facts), suites=_suites(facts))

    return hub_push(args, card)


def push_callbacks(args: TrainingArguments, push: HubPush | None) -> list[HubPush]:
    """The callbacks for a trainer: the upload, if any. ValueError if the Trainer would push too."""
    require(
        not args.push_to_hub,
        "push_to_hub=True makes the Trainer upload training_args.bin; pass the callback of "
        "stages.publish.training_push instead",
    )
    return [push] if push else []


def finish_push(push: HubPush | None, folder: Path, stage: StageConfig) -> None:
    """Upload the final checkpoint, from the main process only.

    Call it after `end_processes`: the timeout of collective operations is shorter than an upload.
    """
    if push is not None and push.is_main and not stage.dry_run:
        push.finish(folder)


def print_plan(trainer: Trainer, push: HubPush | None, work: str) -> None:
    """Print what a run would train and write, at the end of a dry run."""
    out, model = Path(trainer.args.output_dir), trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    there = " (replacing the checkpoint there)" if (out / "config.json").exists() else ""
    print("\ndry run: everything was loaded and checked, nothing was trained or written")
    print(f"  model: {model.num_parameters():,} parameters, {trained:,} of them trained")
    print(f"  work: {work}")
    print(f"  would be written to: {out}{there}")
    if push:
        every = "every save and the end" if push.every_save else "the end"
        print(f"  would be pushed: {every}, to {push.target.repo_id} on the Hub")
    print("next: the same command without --dry_run")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Publish the checkpoint that the command line names."""
    set_threads()
    run(*CommandParser([PublishConfig]).parse_args_and_config(argv))


if __name__ == "__main__":
    main()
