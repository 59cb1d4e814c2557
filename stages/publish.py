"""Put a checkpoint on the Hub, with a model card that tells how it was made and how good it is.

    python -m stages.publish --checkpoint runs/nano/ppo --repo_id user/name --dry_run true
    python -m stages.publish --checkpoint runs/nano/ppo --repo_id user/name

The token is taken from HF_TOKEN or `hf auth login`. Only the files of a checkpoint go up; settings
are read from its run.json, figures from the metrics.json of its evaluations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers.hf_argparser import HfArg

from pipeline.command import CommandParser
from pipeline.config import check_types, require
from pipeline.hub import Facts, model_card, plan_upload, publish, push_later, read_facts
from pipeline.hub.facts import evaluation_folder, read_evaluations, settings_worth_telling
from pipeline.hub.publish import PublishError
from pipeline.hub.upload import Upload
from pipeline.model import load_policy
from pipeline.model.digest import weights_digest
from pipeline.runtime import one_line_errors, set_threads
from stages.pushing import HUB_NAMES


@dataclass(kw_only=True)
class PublishConfig:
    """What is published, and where."""

    checkpoint: str = HfArg(default="", help="checkpoint folder to publish")
    repo_id: str = HfArg(default="", help="user/name on the Hub; made where it is missing")
    private: bool = HfArg(default=False, help="make the repository private where it is new")
    revision: str | None = HfArg(default=None, help="branch to publish to; default: main")
    metrics: str | None = HfArg(
        default=None,
        help="folder with the metrics.json of this checkpoint's evaluations; "
        "default: CHECKPOINT/eval, else eval/NAME beside it",
    )
    base_model: str | None = HfArg(
        default=None, help="name on the Hub of the model beneath adapters, where it is a folder"
    )
    license: str | None = HfArg(default=None, help="licence to state, such as apache-2.0")
    card: str | None = HfArg(default=None, help="a README.md of your own instead of the card")
    message: str = HfArg(default="Checkpoint and card", help="title of the commit")
    dry_run: bool = HfArg(default=False, help="show the files and the card, publish nothing")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("checkpoint", "repo_id"):
            require(
                bool(getattr(self, name)),
                f"--{name} is missing: pass --{name} or set it in the --config",
            )
        if self.card is not None and not Path(self.card).is_file():
            raise FileNotFoundError(f"card={self.card} does not exist; give a Markdown file")


def run(config: PublishConfig) -> str | None:
    """The address of the commit; None for a dry run."""
    folder = Path(config.checkpoint)
    plan = plan_upload(folder, base_model=config.base_model)
    card = card_of(folder, config)
    if config.dry_run:
        print(card(config.repo_id))
        print("--- dry run: nothing was published. These files would go up:")
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
        target = {"private": config.private, "revision": config.revision}
        again = push_later(folder, config.repo_id, **target)
        raise PublishError(f"{error}. The checkpoint is untouched; again: {again}") from error
    _print_end(config, plan, address)
    return address


def card_of(folder: Path, config: PublishConfig) -> Callable[[str], str]:
    """The card for a repository: a file of the user's, or what is known of the checkpoint."""
    if config.card is not None:
        own = Path(config.card).read_text(encoding="utf-8")
        return lambda repo: own
    facts = facts_of(folder, config.metrics, config.base_model)
    return lambda repo: model_card(facts, repo, hub_names=HUB_NAMES, license=config.license)


def facts_of(folder: Path, metrics: str | None = None, base_model: str | None = None) -> Facts:
    """What is known of a checkpoint, with the evaluations of these weights."""
    # TRL takes seconds to import: not for a mistyped argument.
    from pipeline.train.ppo_config import PPOConfig
    from pipeline.train.sft import ReasoningSFTConfig

    where = Path(metrics) if metrics is not None else evaluation_folder(folder)
    require(metrics is None or where.is_dir(), f"metrics={metrics} is no folder; give one")
    evaluations: list = []
    if where.is_dir():
        model, _ = load_policy(folder, value_head="optional")
        evaluations, others = read_evaluations(where, weights_digest(model))
        if others:
            print(f"{others} evaluations in {where} are of other weights: left out of the card")
    own = settings_worth_telling(PPOConfig, ReasoningSFTConfig)
    facts = read_facts(folder, own, evaluations=evaluations)
    return replace(facts, base=base_model) if base_model else facts


def _print_end(config: PublishConfig, plan: Upload, address: str) -> None:
    at = f"@{config.revision}" if config.revision else ""
    print(f"\npublished: {address}")
    print(f"  files: {len(plan) + 1}, the card among them")
    print(
        f"next: python -m eval.run --checkpoint {config.repo_id}{at} --suite nano "
        "--output_dir runs/published"
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    set_threads()
    run(*CommandParser([PublishConfig]).parse_args_and_config(argv))


if __name__ == "__main__":
    main()
