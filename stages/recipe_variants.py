"""What `stages.recipe` compares: its configuration and the models that it trains."""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from transformers.hf_argparser import HfArg

from pipeline.config import NonNegativeInt, PositiveInt, Required, Votes, check_types
from pipeline.config_files import find_config, packaged_config, read_arguments
from pipeline.device import DtypeName


@dataclass(kw_only=True)
class RecipeConfig:
    """Which configurations are run and what is measured; the defaults are those of nano."""

    config_dir: str = HfArg(
        default="",
        help="folder with sft.yaml, ppo.yaml and perhaps sft_direct.yaml; default: nano's",
    )
    output_dir: str = HfArg(
        default="", help="output folder; default: runs/ and the name of config_dir"
    )
    untrained: bool = HfArg(default=True, help="also evaluate the model before any training")
    plain: bool = HfArg(
        default=False,
        help="also evaluate the pretrained model as it is, with its own template and no thought",
    )
    plain_few_shot: NonNegativeInt = HfArg(
        default=0, help="and once more with so many solved training rows before every question"
    )
    plain_max_completion_tokens: PositiveInt = HfArg(
        default=128, help="tokens of its answers at most, which are sentences"
    )
    suites: Required = HfArg(default="nano,nano_hard,o1nano", help="suites answered greedily")
    vote_suites: str = HfArg(default="nano", help="suites also answered by vote; '' for none")
    votes: Votes = HfArg(default=8, help="samples of a vote")
    max_completion_tokens: PositiveInt = HfArg(default=256, help="tokens of a sample at most")
    batch_size: PositiveInt = HfArg(default=256, help="sequences decoded at a time; bounds memory")
    dtype: DtypeName = HfArg(
        default="auto", help="dtype of the weights in evaluations, see eval.run"
    )
    limit: PositiveInt | None = HfArg(default=None, help="problems of each suite; default: all")
    untrained_limit: PositiveInt = HfArg(
        default=60, help="problems of each suite for a nano without training, which solves none"
    )
    untrained_tokens: PositiveInt = HfArg(
        default=64, help="tokens of its answers at most, which never end by themselves"
    )
    question: str = HfArg(default="", help="also answer this question by tree search at the end")
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    seed: int = HfArg(default=42, help="seed of every training")
    jobs: PositiveInt = HfArg(
        default=1, help="trainings and evaluations at a time, which share the cores"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("sft.yaml", "ppo.yaml"):
            if not (self.configs / name).is_file():
                raise FileNotFoundError(
                    f"config_dir={self.config_dir} has no {name}; give a folder with both, such "
                    f"as {packaged_config('nano')}"
                )

    @property
    def configs(self) -> Path:
        """Folder of the configurations."""
        return find_config(self.config_dir) if self.config_dir else packaged_config("nano")

    def limits(self, variant: "Variant") -> tuple[int | None, int]:
        """Problems of a suite and tokens of an answer in the evaluation of a variant."""
        start = read_arguments(self.configs / variant.config).get("model", "nano")
        if variant.folder != UNTRAINED or start != "nano":
            return self.limit, self.max_completion_tokens
        return (
            min(self.limit or self.untrained_limit, self.untrained_limit),
            min(self.max_completion_tokens, self.untrained_tokens),
        )

    @property
    def pretrained(self) -> str:
        """The model that SFT starts from."""
        return str(yaml.safe_load((self.configs / "sft.yaml").read_text()).get("model", "nano"))

    @property
    def folder(self) -> Path:
        """Output folder."""
        return Path(self.output_dir or f"runs/{self.configs.resolve().name}")


@dataclass(frozen=True)
class Variant:
    """One model of the comparison: how it is trained and evaluated."""

    name: str
    description: str
    folder: str
    module: str
    config: str
    training: tuple[str, ...] = ()  # further arguments of its training
    starts_from: str = ""  # folder of another variant
    thinks: bool = True
    votes: bool = False
    few_shot: int = 0


UNTRAINED, MIXED = "base", "sft_mixed"
VARIANTS = (
    Variant(
        name="base",
        description="the model before any training",
        folder=UNTRAINED,
        module="stages.sft",
        config="sft.yaml",
        training=("--num_train_epochs", "0"),
    ),
    Variant(
        name="no-CoT SFT",
        description="trained to answer without a thought",
        folder="sft_direct",
        module="stages.sft",
        config="sft_direct.yaml",
        thinks=False,
    ),
    Variant(
        name="SFT",
        description="trained on worked solutions",
        folder="sft",
        module="stages.sft",
        config="sft.yaml",
        votes=True,
    ),
    Variant(
        name="SFT mixed",
        description="then trained to leave most thoughts empty, where PPO starts from it",
        folder=MIXED,
        module="stages.sft",
        config="sft_mixed.yaml",
        starts_from="sft",
    ),
    Variant(
        name="SFT + PPO",
        description="then trained on its own samples, rewarded by programs",
        folder="ppo",
        module="stages.ppo",
        config="ppo.yaml",
        starts_from="sft",
        votes=True,
    ),
)


def variants_of(recipe: RecipeConfig) -> list[Variant]:
    """The variants that have a configuration, in order.

    PPO starts from SFT, or from `sft_mixed` where the `model` of ppo.yaml has that name. Without
    such a PPO nothing needs `sft_mixed`, and it is left out.
    """
    model = read_arguments(recipe.configs / "ppo.yaml").get("model") or "sft"
    left_out = {UNTRAINED} if not recipe.untrained else set()
    mixed = Path(str(model)).name == MIXED
    if not mixed:
        left_out.add(MIXED)
    found = [
        variant
        for variant in VARIANTS
        if variant.folder not in left_out and (recipe.configs / variant.config).is_file()
    ]
    return [replace(v, starts_from=MIXED) if mixed and v.folder == "ppo" else v for v in found]
