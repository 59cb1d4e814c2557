"""Answer one question with a checkpoint and print it, or answer a file of questions.

python -m stages.infer --checkpoint runs/nano/ppo --question "Calculate the sum of 12 and 7" \\
    --strategy mcts --show_reasoning true --tree tree.json
python -m stages.infer --checkpoint runs/nano/ppo --questions questions.jsonl \\
    --output_dir runs/answers

The answers to a file are rows of `output_dir/records.jsonl`, in its order. The same command again
continues an interrupted one; under `accelerate launch` several processes share the questions.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.console import Console
from rich.text import Text
from transformers.hf_argparser import HfArg

from pipeline.answers.shared_folder import check_hosts
from pipeline.cli import CommandParser
from pipeline.config import OwnDataConfig, PromptConfig, Required, require
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.device import DeviceOptions, choose_device
from pipeline.hosts import only_main_prints, this_place
from pipeline.model import load_for_inference
from pipeline.records import Answer
from pipeline.runtime import one_line_errors, prepare_cpu, terminate_with_launcher
from pipeline.search import STRATEGIES, SearchOptions, check_strategy
from pipeline.search.mcts import answers_and_trees
from pipeline.search.tree import drawing
from stages.answer_file import answer_file, read_questions


@dataclass(kw_only=True)
class InferArguments(DeviceOptions, SearchOptions, OwnDataConfig, PromptConfig):
    """The checkpoint, the question or questions, and the search strategy."""

    needs_answers: ClassVar[bool] = False

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or a model on the Hub")
    question: str = HfArg(default="", help="the question")
    questions: str = HfArg(
        default="",
        help="a file of questions (.jsonl, .json, .csv, .parquet), a folder saved by datasets, or "
        "a Hub id; needs output_dir",
    )
    output_dir: str = HfArg(default="", help="questions: folder of records.jsonl")
    too_long: Literal["refuse", "empty"] = HfArg(
        default="refuse",
        help="questions that leave no room for an answer: stop with an error, or answer nothing",
    )
    strategy: str = HfArg(default="greedy", help="search strategy: " + ", ".join(STRATEGIES))
    show_reasoning: bool = HfArg(default=False, help="show the thought as well")
    tree: str | None = HfArg(
        default=None, help="mcts: print the tree and save it as this JSON file"
    )

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        PromptConfig.__post_init__(self)
        super().__post_init__()
        require(
            bool(self.question or self.questions),
            "--question is missing; give --question TEXT, or --questions FILE with --output_dir "
            "DIR",
        )
        require(
            not (self.question and self.questions),
            f"question={self.question!r} and questions={self.questions!r}: give one of --question "
            "TEXT and --questions FILE",
        )
        require(
            bool(self.output_dir) == bool(self.questions),
            f"questions={self.questions!r} and output_dir={self.output_dir!r}: --questions FILE "
            "and --output_dir DIR belong together",
        )
        require(
            self.tree is None or not Path(self.tree).is_dir(),
            f"tree={self.tree} is a folder; give the name of a file",
        )
        require(
            self.tree is None or not self.questions,
            f"tree={self.tree} is for one question: leave it out, or give --question",
        )
        require(
            self.tree is None or self.strategy == "mcts",
            f"tree={self.tree}, but the strategy {self.strategy} has no tree: give --strategy mcts",
        )
        check_strategy(self.strategy, self.options)
        choose_device(self.device)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print the answer to the question of the command line, or write those to a file of them."""
    (args,) = CommandParser(InferArguments).parse_args_and_config(argv)
    if not args.questions:
        _answer_one(args)
        return
    terminate_with_launcher()
    with only_main_prints():
        _answer_file(args)


def _answer_file(args: InferArguments) -> None:
    check_hosts(args.output_dir)
    problems = read_questions(args.questions, args)
    prepare_cpu()
    model, tokenizer = load_for_inference(args.checkpoint, args)
    apply_prompt(tokenizer, args, examples=few_shot_problems(args))
    rows = answer_file(
        model,
        tokenizer,
        problems,
        args.strategy,
        args.options,
        args.output_dir,
        show_reasoning=args.show_reasoning,
        too_long=args.too_long,
    )
    if not this_place().is_main:
        return
    ends = Counter(row["finish_reason"] for row in rows)
    names = {
        "stop": "finished",
        "length": "without a finished answer",
        "too_long": "too long to answer",
    }
    said = ", ".join(f"{ends[end]} {name}" for end, name in names.items() if ends[end])
    print(f"{len(rows)} questions: {said} -> {Path(args.output_dir) / 'records.jsonl'}")


def _answer_one(args: InferArguments) -> None:
    prepare_cpu()
    model, tokenizer = load_for_inference(args.checkpoint, args)
    apply_prompt(tokenizer, args, examples=few_shot_problems(args))
    console = Console(highlight=False)
    if args.tree is None:
        (answer,) = STRATEGIES[args.strategy](model, tokenizer, [args.question], args.options)
    else:
        ((answer, tree),) = answers_and_trees(model, tokenizer, [args.question], args.options)
        console.print(Text(drawing(tree)))
    if args.show_reasoning:
        console.print(Text(answer.thought, style="dim"))
    console.print(Text(answer.text or "(no answer: the budget ended it, or the model wrote none)"))
    console.print(Text(cost(answer), style="dim"))
    if args.tree is not None:
        tree.save(args.tree)  # last: the answer is shown where the file cannot be written


def cost(answer: Answer) -> str:
    """The cost of an answer in tokens and its value, in one line.

    >>> from pipeline.records import Usage
    >>> cost(Answer(text="5", value=0.5, usage=Usage(prompt_tokens=9, reasoning_tokens=4)))
    '9 prompt + 4 reasoning + 0 visible tokens, value 0.50'
    """
    usage = answer.usage
    parts = [
        f"{usage.prompt_tokens} prompt + {usage.reasoning_tokens} reasoning + "
        f"{usage.visible_tokens} visible tokens"
    ]
    parts += [] if answer.value is None else [f"value {answer.value:.2f}"]
    parts += ["thought closed by the budget"] if answer.forced else []
    parts += ["no finished answer"] if answer.finish_reason == "length" else []
    return ", ".join(parts)


if __name__ == "__main__":
    main()
