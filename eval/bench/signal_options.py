"""What `python -m eval.bench signal` samples, compares and reads."""

import random
from dataclasses import dataclass
from typing import Annotated

from transformers.hf_argparser import HfArg

from eval.bench.estimators import ESTIMATORS, Estimator, recipe_estimator
from pipeline.config import (
    Bounds,
    DataConfig,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Required,
    UnitInterval,
    check_types,
    require,
)
from pipeline.data import load_problems, make_arithmetic_problems
from pipeline.device import DeviceOptions
from pipeline.records import Problem


@dataclass(kw_only=True)
class SignalConfig(DeviceOptions):
    """What is sampled, and in which batches gradients are compared."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder or Hub id; of SFT or PPO")
    dataset: str = HfArg(default="nano", help="name of a data set, a file or a Hub id")
    split: str = HfArg(default="train", help="its split")
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    shares: str | None = HfArg(default=None, help="kinds of nano and their shares")
    decomposed_share: UnitInterval = HfArg(
        default=0.0, help="share of nano's thoughts that are broken into smaller steps"
    )
    questions: PositiveInt = HfArg(default=384, help="questions to sample, in all")
    completions_per_question: Annotated[int, Bounds(ge=2, why="RLOO compares completions")] = HfArg(
        default=8, help="samples of a question"
    )
    batch_sizes: str = HfArg(
        default="16,32,64,128", help="questions of a batch, multiples of the first, with commas"
    )
    estimators: str = HfArg(
        default=",".join(ESTIMATORS), help=f"with commas, of: {', '.join(ESTIMATORS)}"
    )
    recipes: str = HfArg(
        default="", help="configurations of stages.ppo whose rewards and advantages are compared"
    )
    worked_solutions: NonNegativeInt = HfArg(
        default=1024, help="worked solutions for the SFT gradient, of other questions; 0: none"
    )
    supervised_batch_size: PositiveInt = HfArg(default=64, help="worked solutions of a batch")
    temperature: PositiveFloat = HfArg(default=1.0, help="sampling temperature")
    max_completion_length: PositiveInt = HfArg(default=256, help="tokens of a completion")
    micro_batch_size: PositiveInt = HfArg(default=64, help="sequences of a forward pass")
    seed: int = HfArg(default=0, help="of the questions and of the samples")
    threads: PositiveInt | None = HfArg(default=None, help="threads of torch; default: cores")
    output: str = HfArg(default="", help="JSON file; default: runs/bench/signal-CHECKPOINT.json")

    def __post_init__(self) -> None:
        check_types(self)
        sizes = self.sizes()
        for size in sizes:
            require(
                size % sizes[0] == 0 and 2 * size <= self.questions,
                f"batch_sizes={self.batch_sizes} has {size}, which must be a multiple of the first "
                f"size and at most half of questions={self.questions}",
            )
        require(
            self.questions % sizes[0] == 0 and self.questions >= 3 * sizes[0],
            f"questions={self.questions} must be a multiple of the first of batch_sizes="
            f"{self.batch_sizes}, and at least 3 of them",
        )
        require(
            self.worked_solutions == 0 or self.worked_solutions >= 3 * self.supervised_batch_size,
            f"worked_solutions={self.worked_solutions} must be at least 3 batches of "
            f"supervised_batch_size={self.supervised_batch_size}, or 0",
        )
        for name in self.names():
            require(
                name in ESTIMATORS,
                f"estimators={name!r} is not one of {', '.join(ESTIMATORS)}",
            )
        require(bool(self.names() or self.recipes), "estimators and recipes are both empty")

    def sizes(self) -> list[int]:
        """The questions of a batch, smallest first."""
        texts = [text.strip() for text in self.batch_sizes.split(",")]
        require(
            all(text.isdigit() and int(text) > 0 for text in texts),
            f"batch_sizes={self.batch_sizes!r} must be whole numbers with commas, as in 16,32,64",
        )
        return [int(text) for text in texts]

    def names(self) -> list[str]:
        """The names of the estimators."""
        return [name.strip() for name in self.estimators.split(",") if name.strip()]

    def chosen(self) -> dict[str, Estimator]:
        """The estimators by name, those of `recipes` by their paths."""
        paths = [path.strip() for path in self.recipes.split(",") if path.strip()]
        named = {name: ESTIMATORS[name] for name in self.names()}
        return named | {path: recipe_estimator(path) for path in paths}


def read_problems(config: SignalConfig) -> tuple[list[Problem], list[Problem]]:
    """Return (problems to sample, problems with worked solutions), in random order, no question in
    both.

    Raises:
        ValueError: fewer than asked for.
    """
    data = DataConfig(
        dataset=config.dataset, shares=config.shares, decomposed_share=config.decomposed_share
    )
    needed, shares = config.questions + config.worked_solutions, data.parsed_shares()
    if shares is None:
        problems = load_problems(config.dataset, config.split, config.data_root)
        random.Random(config.seed).shuffle(problems)
    else:
        problems = make_arithmetic_problems(
            shares, size=2 * needed, seed=config.seed, decomposed_share=data.decomposed_share
        )
    problems = list({str(problem.prompt): problem for problem in problems}.values())
    asked, rest = problems[: config.questions], problems[config.questions :]
    solved = [problem for problem in rest if problem.thought][: config.worked_solutions]
    require(
        len(asked) == config.questions,
        f"questions={config.questions} are more than the {len(asked)} of {config.dataset}; lower "
        "questions and batch_sizes",
    )
    require(
        len(solved) == config.worked_solutions,
        f"worked_solutions={config.worked_solutions} are more than the {len(solved)} that "
        f"{config.dataset} has beside the questions; lower it, or give 0",
    )
    return asked, solved
