"""A programming contest: up to 10 submissions a problem, hidden tests, penalty, rating.

python -m eval.contest --checkpoint runs/small/ppo --dataset codeforces --split test \\
    --contestants ratings.txt --output_dir runs/contest

Samples of the model are submitted in order until one passes all tests in the sandbox. The rating is
the maximum-likelihood estimate from solved and unsolved problems; a problem's rating is its level,
or comes from --ratings. The percentile is among the ratings of the file --contestants, one a line.
The same command again continues an interrupted contest; with other contestants it only rates again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.codeforces import describe_rating, read_ratings
from eval.contest_rules import (
    ContestRow,
    parse_ratings,
    problem_rating,
    rating_of,
    standing,
    submit,
)
from eval.run import check_strategy, load_checkpoint, run_settings
from eval.suites import spread
from pipeline.answers.run_folder import RunFolder
from pipeline.answers.settings import too_long_problems
from pipeline.cli import CommandParser
from pipeline.config import OwnDataConfig, PositiveInt, Required, check_types, require
from pipeline.data import read_problems
from pipeline.device import DeviceOptions, choose_device
from pipeline.folder_lock import lock_folder
from pipeline.grading import grade
from pipeline.hosts import require_one_process
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, prepare_cpu, write_json, write_run_info
from pipeline.search import SearchOptions, sample_answers


@dataclass(kw_only=True)
class ContestArguments(DeviceOptions, OwnDataConfig):
    """The contestant, the problems and the rules."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or a model on the Hub")
    dataset: Required = HfArg(
        default="", help="data set of programs: codeforces, apps, apps_sample, or a file with tests"
    )
    split: str = HfArg(default="test", help="split of the data set")
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    limit: PositiveInt | None = HfArg(default=None, help="problems, evenly spread; default: all")
    submissions: PositiveInt = HfArg(default=10, help="submissions of a problem at most")
    ratings: str = HfArg(default="", help="rating of each level, as in interview=1600,hard=2200")
    contestants: str = HfArg(default="", help="file of ratings for the percentile, one a line")
    temperature: float = HfArg(default=0.7, help="sampling temperature")
    max_sample_tokens: PositiveInt = HfArg(default=2048, help="tokens of one sample at most")
    batch_size: PositiveInt = HfArg(default=64, help="sequences decoded at a time")
    seed: int = HfArg(default=0, help="seed of the samples")
    output_dir: Required = HfArg(default="", help="folder of contest.json and records.jsonl")

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        check_types(self)
        parse_ratings(self.ratings)
        choose_device(self.device)
        check_strategy("sample", replace(self.options, n=1))

    @property
    def options(self) -> SearchOptions:
        """The options of sampling as those of a search."""
        names = ("temperature", "max_sample_tokens", "batch_size", "seed")
        given = {name: getattr(self, name) for name in names}
        return SearchOptions(n=self.submissions, answer_tokens=0, **given)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Hold the contest and print standing and rating."""
    (args,) = CommandParser(ContestArguments).parse_args_and_config(argv)
    require_one_process("eval.contest")
    contestants = read_ratings(args.contestants) if args.contestants else []
    found = read_problems(args.dataset, args.split, args.data_root, own=args).problems
    problems = spread([problem for problem in found if problem.check], args.limit)
    require(
        bool(problems),
        f"dataset={args.dataset} has no programs with tests in its split {args.split}; give "
        "codeforces, apps, apps_sample or a file with a column tests",
    )
    ratings = parse_ratings(args.ratings)
    rated = [problem_rating(problem, ratings) for problem in problems]
    prepare_cpu()
    model, tokenizer = load_checkpoint(args.checkpoint, args)
    rows = hold_contest(
        model, tokenizer, problems, rated, args.options, args.output_dir, name=args.dataset
    )
    rating = rating_of(rows, args.submissions, contestants)
    result = asdict(standing(rows)) | {"rating": rating}
    if contestants:
        result["population"] = {"file": Path(args.contestants).name, "n": len(contestants)}
    write_json(Path(args.output_dir) / "contest.json", result)
    print(describe_rating(rating))
    if not result["submissions"]:
        print("nothing was submitted: no sample is finished; raise --max_sample_tokens")
    print(f"penalty {result['penalty']}, {result['first_try']} solved by the first submission")


def hold_contest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    ratings_Q: Sequence[float],
    options: SearchOptions,
    output_dir: str | Path,
    *,
    name: str = "",
) -> list[ContestRow]:
    """Sample `options.n` answers of every problem and submit them; rows go to records.jsonl.

    Raises:
        ValueError: the folder has a contest with other settings, or a question leaves no room for
            its answer.
        SandboxError: nothing on this machine isolates programs.
    """
    options = options.for_model(tokenizer)
    settings = run_settings(model, tokenizer, problems, "contest", options, name)
    settings |= {"ratings": list(ratings_Q)}
    asked = [problem.prompt for problem in problems]
    too_long_problems(model, tokenizer, problems, asked, options, "a file without them")

    def answer(part: Sequence[Problem], start: int) -> list[ContestRow]:
        seeded = replace(options, seed=options.seed + start)
        questions = [problem.prompt for problem in part]
        groups = sample_answers(
            model, tokenizer, questions, seeded, temperature=options.temperature
        )
        texts = [[a.text for a in group if a.finish_reason == "stop"] for group in groups]
        return [
            _row(problem, ratings_Q[start + i], answers, options.n)
            for i, (problem, answers) in enumerate(zip(part, texts, strict=True))
        ]

    with lock_folder(output_dir):
        chunk = max(1, options.batch_size // options.n)
        folder: RunFolder[ContestRow] = RunFolder(
            output_dir, settings, chunk=chunk, total=len(problems)
        )
        folder.complete(problems, answer, f"{name} contest")
        write_run_info(folder.path, **settings)
    return folder.rows


def _row(problem: Problem, rating: float, answers: Sequence[str], submissions: int) -> ContestRow:
    made, repeated = submit(problem, answers, submissions, grade)
    return {
        "id": problem.id,
        "level": problem.level,
        "question": problem.question,
        "rating": rating,
        "submissions": made,
        "repeated": repeated,
        "correct": bool(made) and made[-1]["accepted"] is True,
    }


if __name__ == "__main__":
    main()
