"""Chat with a checkpoint in the terminal; its thoughts are hidden by default.

python -m stages.chat --checkpoint runs/nano/ppo --strategy consensus --n 8

Answers of greedy and sample appear token by token, those of a search at its end. An empty line or
Ctrl-D ends the program, Ctrl-C ends an answer or discards the line that is typed; /help lists the
commands. The prompt contains no thoughts of earlier turns; the oldest turns are dropped when the
context window is full.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import PromptConfig, Required, require
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.device import DeviceOptions
from pipeline.model import load_for_inference
from pipeline.runtime import environment, error_message, one_line_errors, set_threads
from pipeline.search import STRATEGIES, SearchOptions, check_strategy
from pipeline.serve.text_stream import TextDelta
from stages.conversation import EFFORTS, Chat
from stages.infer import cost

HELP = f"""\
/new              start a new conversation
/think            show or hide the thoughts, dimmed
/strategy NAME    one of {", ".join(STRATEGIES)}
/effort NAME      tokens of an answer: {", ".join(EFFORTS)}, default
/system TEXT      system prompt from the next question on; without a text: none
/save FILE        the conversation as JSON, without thoughts
/usage            tokens of all answers so far
/help             this list
\"\"\"               begins and ends a question of several lines; so does \\ at the end of a line
an empty line or Ctrl-D ends, Ctrl-C ends an answer or discards the line"""
FENCE = '"""'


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


class Terminal:
    """Reads questions and commands, and writes answers as they come."""

    def __init__(self, chat: Chat, console: Console, *, show_reasoning: bool):
        self.chat, self.console, self.show_reasoning = chat, console, show_reasoning
        self._kind = ""  # of the text written last: thought or visible

    def answer(self, question: str) -> None:
        """Write the answer to a question and its cost; Ctrl-C leaves the turns as they were."""
        self._kind = ""
        try:
            answer = self.chat.ask(question, self._write)
        except KeyboardInterrupt:
            self.console.print(Text("\n(stopped; the question is forgotten)", style="dim"))
            return
        if self._kind:
            self.console.print()
        if not answer.text:
            self.console.print(
                Text("(no answer: the budget ended it, or the model wrote none)", style="bold")
            )
        self.console.print(Text(cost(answer), style="dim"))

    def command(self, line: str) -> None:
        """Carry out a command.

        Raises:
            ValueError: its argument is wrong.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        chat = self.chat
        if name == "/new":
            chat.new()
        elif name in ("/think", "/thoughts"):
            self.show_reasoning = not self.show_reasoning
            self._say(f"thoughts are {'shown' if self.show_reasoning else 'hidden'}")
        elif name == "/strategy":
            chat.set_strategy(rest)
            self._say(f"strategy {rest}")
        elif name == "/effort":
            chat.set_effort(rest)
            self._say(f"at most {chat.options.sample_tokens} tokens of one thought and answer")
        elif name == "/system":
            chat.system = rest
            self._say(f"system prompt: {rest or 'none'}")
        elif name == "/save":
            require(bool(rest), "/save needs the name of a file: /save chat.json")
            chat.save(rest)
            self._say(f"saved {len(chat.messages)} messages to {rest}")
        elif name == "/usage":
            self._say(
                f"{chat.usage.prompt_tokens} prompt + {chat.usage.reasoning_tokens} reasoning"
                f" + {chat.usage.visible_tokens} visible tokens so far"
            )
        elif name == "/help":
            self.console.print(HELP, markup=False)
        else:
            raise ValueError(f"there is no command {name}; /help lists them")

    def read(self) -> str:
        """One question or command, of several lines where it is marked so; "" at the end.

        Ctrl-C in a terminal discards the lines typed so far, so that one that comes just after an
        answer does not end the conversation.
        """
        while True:
            try:
                return self._read()
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                self._say("\n(an empty line or Ctrl-D ends)")

    def _read(self) -> str:
        line = self._line("> ")
        if line.startswith(FENCE):
            text = line.removeprefix(FENCE)
            while FENCE not in text and (more := self._more()) is not None:
                text += "\n" + more
            return text.partition(FENCE)[0].strip()
        while line.endswith("\\"):
            line = line[:-1] + "\n" + (self._more() or "")
        return line.strip()

    def _write(self, delta: TextDelta) -> None:
        if self.show_reasoning and delta.thought:
            self._write_piece("thought", Text(delta.thought, style="dim"))
        if delta.visible:
            self._write_piece("visible", Text(delta.visible, style="bold"))

    def _write_piece(self, kind: str, text: Text) -> None:
        if self._kind not in ("", kind):
            self.console.print()
        self._kind = kind
        self.console.print(text, end="", soft_wrap=True)
        self.console.file.flush()

    def _say(self, text: str) -> None:
        self.console.print(Text(text, style="dim"))

    def _line(self, prompt: str) -> str:
        try:
            return input(prompt).rstrip()  # readline has to know the prompt
        except EOFError:
            return ""

    def _more(self) -> str | None:
        """A further line; None at the end of the input."""
        try:
            return input(". ").rstrip()
        except EOFError:
            return None


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Answer questions from the terminal until the input ends."""
    (args,) = CommandParser(
        ChatArguments, set_later=("strategy", "reasoning_effort")
    ).parse_args_and_config(argv)
    set_threads()
    model, tokenizer = load_for_inference(args.checkpoint, args)
    apply_prompt(tokenizer, args, examples=few_shot_problems(args))
    console = Console(highlight=False, markup=False)  # the path may have brackets
    chat = Chat(model, tokenizer, args.strategy, args.options)
    terminal = Terminal(chat, console, show_reasoning=args.show_reasoning)
    console.print(
        f"{args.checkpoint} on {model.device} answers with the strategy {args.strategy}. "
        "/help for help."
    )
    remember_lines()
    while question := terminal.read():
        try:
            if question.startswith("/"):
                terminal.command(question)
            else:
                terminal.answer(question)
        except (ValueError, OSError) as error:
            console.print(Text(f"error: {error_message(error)}", style="red"))


def remember_lines() -> None:
    """Let the arrow keys bring back earlier lines, also those of earlier chats.

    They are kept in chat_history in the folder THINKHEAD_CACHE, by default ~/.cache/thinkhead.
    """
    if not sys.stdin.isatty():
        return
    try:
        import atexit
        import readline
    except ImportError:  # Windows
        return
    path = Path(environment("CACHE") or Path.home() / ".cache" / "thinkhead") / "chat_history"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
        readline.set_history_length(1000)
        atexit.register(readline.write_history_file, path)


if __name__ == "__main__":
    main()
