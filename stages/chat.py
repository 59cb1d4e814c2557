"""Chat with a checkpoint in the terminal; its thoughts are hidden by default.

python -m stages.chat --checkpoint runs/nano/ppo --strategy consensus --n 8

An empty line or Ctrl-D ends the program; /help lists the commands. The prompt contains no
thoughts of earlier turns; the oldest turns are dropped when the context window is full.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from pipeline.chat.plain import encode_questions
from pipeline.chat.prompts import user_message
from pipeline.cli import CommandParser
from pipeline.config import PromptConfig, Required
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.device import DeviceOptions
from pipeline.model import load_for_inference
from pipeline.records import Answer
from pipeline.runtime import one_line_errors, set_threads
from pipeline.search import STRATEGIES, SearchOptions, check_strategy
from stages.infer import cost

Turns = list[dict[str, str]]
HELP = """\
/new        start a new conversation
/thoughts   show or hide the thoughts
/help       this list
an empty line or Ctrl-D ends"""


@dataclass(kw_only=True)
class ChatArguments(DeviceOptions, SearchOptions, PromptConfig):
    """The checkpoint and the search strategy."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or a model on the Hub")
    strategy: str = HfArg(default="greedy", help="search strategy: " + ", ".join(STRATEGIES))
    show_reasoning: bool = HfArg(default=False, help="print the thought as well, dimmed")

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        super().__post_init__()
        check_strategy(self.strategy, self.options)


class Chat:
    """One conversation: its turns, without the thoughts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        strategy: str,
        options: SearchOptions,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.strategy, self.options = STRATEGIES[strategy], options.for_model(tokenizer)
        self.turns: Turns = []

    def ask(self, question: str) -> Answer:
        """Answer to the next question; both are added to the turns."""
        turns = self._fitting([*self.turns, *user_message(question)])
        (answer,) = self.strategy(self.model, self.tokenizer, [turns], self.options)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        return answer

    def _fitting(self, turns: Turns) -> Turns:
        """The last turns that leave room for an answer in the context window."""
        window = getattr(self.model.config, "max_position_embeddings", None)
        while window is not None and len(turns) > 2:
            (prompt,) = encode_questions(self.tokenizer, [turns], think=self.options.think)
            if len(prompt) + self.options.sample_tokens <= window:
                break
            turns = turns[2:]
        return turns


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Answer questions from the terminal until the input ends."""
    (args,) = CommandParser(ChatArguments).parse_args_and_config(argv)
    set_threads()
    model, tokenizer = load_for_inference(args.checkpoint, args)
    apply_prompt(tokenizer, args, examples=few_shot_problems(args))
    console = Console(highlight=False)
    chat = Chat(model, tokenizer, args.strategy, args.options)
    show_reasoning = args.show_reasoning
    console.print(f"{args.checkpoint} answers with the strategy {args.strategy}. /help for help.")
    while question := _read(console):
        if question.startswith("/"):
            if question == "/new":
                chat.turns = []
            elif question == "/thoughts":
                show_reasoning = not show_reasoning
            else:
                console.print(HELP)
            continue
        answer = chat.ask(question)
        if show_reasoning:
            console.print(Text(answer.thought, style="dim"))
        console.print(Text(answer.text or "(no answer within the budget)", style="bold"))
        console.print(Text(cost(answer), style="dim"))


def _read(console: Console) -> str:
    """One line of the user; empty at the end of the input."""
    try:
        return console.input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()
