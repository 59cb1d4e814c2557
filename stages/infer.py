"""Answer one question with a checkpoint, and print the cost in tokens.

python -m stages.infer --checkpoint runs/nano/ppo --question "What is 12 plus 7?" \
    --strategy mcts --show_reasoning true --tree tree.json
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text
from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import PromptConfig, Required, require
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.device import DeviceOptions
from pipeline.model import load_for_inference
from pipeline.records import Answer
from pipeline.runtime import one_line_errors, prepare_cpu
from pipeline.search import STRATEGIES, SearchOptions, check_strategy
from pipeline.search.mcts import answers_and_trees
from pipeline.search.tree import drawing


@dataclass(kw_only=True)
class InferArguments(DeviceOptions, SearchOptions, PromptConfig):
    """The checkpoint, the question and the search strategy."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or a model on the Hub")
    question: Required = HfArg(default="", help="the question")
    strategy: str = HfArg(default="greedy", help="search strategy: " + ", ".join(STRATEGIES))
    show_reasoning: bool = HfArg(default=False, help="print the thought as well")
    tree: str | None = HfArg(
        default=None, help="mcts: print the tree and save it as this JSON file"
    )

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        super().__post_init__()
        require(
            self.tree is None or self.strategy == "mcts",
            f"tree={self.tree}, but the strategy {self.strategy} has no tree: give --strategy mcts",
        )
        check_strategy(self.strategy, self.options)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print the answer to the question of the command line, and its cost in tokens."""
    (args,) = CommandParser(InferArguments).parse_args_and_config(argv)
    prepare_cpu()
    model, tokenizer = load_for_inference(args.checkpoint, args)
    apply_prompt(tokenizer, args, examples=few_shot_problems(args))
    console = Console(highlight=False)
    if args.tree is None:
        (answer,) = STRATEGIES[args.strategy](model, tokenizer, [args.question], args.options)
    else:
        ((answer, tree),) = answers_and_trees(model, tokenizer, [args.question], args.options)
        tree.save(args.tree)
        console.print(Text(drawing(tree)))
    if args.show_reasoning:
        console.print(Text(answer.thought, style="dim"))
    console.print(Text(answer.text or "(no answer within the budget)"))
    console.print(Text(cost(answer), style="dim"))


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
    parts += ["cut by the budget"] if answer.finish_reason == "length" else []
    return ", ".join(parts)


if __name__ == "__main__":
    main()
