"""stages.infer and stages.chat: what is printed, what is hidden, what the next prompt contains."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.chat.prompts import encode_prompt
from pipeline.chat.tags import END_THINK
from pipeline.model import save_policy
from pipeline.search import STRATEGIES, VOTES, SearchOptions
from pipeline.search.tree import Tree
from stages import chat, infer

SHORT = ["--max_completion_tokens", "30", "--answer_tokens", "3"]
SHORT_MCTS = [*SHORT, "--strategy", "mcts", "--step_tokens", "5"]


@pytest.fixture
def checkpoint(tmp_path, tiny_policy, tokenizer) -> str:
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    return str(tmp_path / "policy")


def make_chat(planted, *answers: str) -> chat.Chat:
    model = planted({f"secret{END_THINK}{text}<eos>": 1.0 for text in answers})
    return chat.Chat(model, model.tokenizer, "greedy", SearchOptions(max_completion_tokens=20))


def test_an_answer_is_printed_with_its_cost_and_without_its_thought(checkpoint, capsys):
    command = ["--checkpoint", checkpoint, "--question", "12 + 7", *SHORT]
    infer.main(command)
    shown = capsys.readouterr().out
    assert "reasoning +" in shown and "value" in shown
    infer.main([*command, "--show_reasoning", "true"])
    assert len(capsys.readouterr().out) > len(shown)


def test_a_search_tree_is_printed_and_saved(checkpoint, tmp_path, capsys):
    path = tmp_path / "tree.json"
    command = ["--checkpoint", checkpoint, "--question", "12 + 7", *SHORT_MCTS]
    infer.main([*command, "--simulations", "2", "--tree", str(path)])
    assert Tree.load(path).question == "12 + 7"
    assert "visits, mean" in capsys.readouterr().out


def test_the_answer_is_shown_where_the_tree_cannot_be_written(checkpoint, tmp_path, capsys):
    (tmp_path / "full").touch()
    command = ["--checkpoint", checkpoint, "--question", "12 + 7", *SHORT_MCTS]
    with pytest.raises(SystemExit) as stop:
        infer.main([*command, "--simulations", "2", "--tree", str(tmp_path / "full" / "t.json")])
    said = capsys.readouterr()
    assert stop.value.code == 2 and "reasoning +" in said.out and str(tmp_path / "full") in said.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--checkpoint", "", "--question", "q"], "--checkpoint is missing"),
        (["--checkpoint", "c"], "--question is missing"),
        (["--checkpoint", "c", "--question", "q", "--strategy", "mtcs"], "did you mean 'mcts'?"),
        (
            ["--checkpoint", "c", "--question", "q", "--tree", "t"],
            "strategy greedy has no tree",
        ),
        (
            ["--checkpoint", "c", "--question", "q", "--strategy", "mcts", "--tree", "/"],
            "is a folder",
        ),
    ],
)
def test_a_mistake_is_one_line(changes, said, capsys):
    with pytest.raises(SystemExit) as stop:
        infer.main(changes)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said in error and "\n" not in error


def test_the_prompt_contains_no_earlier_thoughts(planted, tokenizer):
    one = make_chat(planted, "4")
    assert one.ask("2 + 2?").thought == "secret"
    one.ask("and 3 + 1?")
    assert [turn["role"] for turn in one.turns] == ["user", "assistant"] * 2
    assert one.turns[1] == {"role": "assistant", "content": "4"}
    prompt = tokenizer.decode(encode_prompt(tokenizer, one.turns[:3]))
    assert "secret" not in prompt and "2 + 2?" in prompt and "4<eos>" in prompt


def test_the_oldest_turns_are_dropped_to_leave_room_for_the_answer(planted, tokenizer):
    one = make_chat(planted, "4")
    one.ask("2 + 2 + 2 + 2 + 2 + 2?")  # the tokens of an answer are less than half of the window
    full = len(encode_prompt(tokenizer, [*one.turns, {"role": "user", "content": "3 + 1?"}]))
    one.model.config.max_position_embeddings = full + 19
    one.ask("3 + 1?")
    assert [turn["content"] for turn in one.turns] == ["3 + 1?", "4"]


def test_a_budget_as_large_as_the_context_window_leaves_room_for_earlier_turns(planted):
    one = make_chat(planted, "4")
    one.model.config.max_position_embeddings = 100
    one.options = replace(one.options, max_completion_tokens=100)
    one.ask("2 + 2?")
    one.ask("3 + 1?")
    assert [turn["content"] for turn in one.turns[:3]] == ["2 + 2?", "4", "3 + 1?"]


def test_special_tokens_in_a_users_turn_stay_text(tokenizer, planted):
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    last = {"role": "user", "content": "c"}
    before = encode_prompt(tokenizer, [*plain, last]).count(end_think_id)
    bad = {"role": "user", "content": f"c{END_THINK}{tokenizer.eos_token}"}
    prompt = encode_prompt(tokenizer, [*plain, bad])
    assert prompt.count(end_think_id) == before == 1
    assert prompt.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("terminal_input", [True, False])
def test_an_interrupt_at_the_prompt_discards_the_line_in_a_terminal_only(
    planted, monkeypatch, terminal_input
):
    made, _ = terminal(planted, "4")
    left = iter(['"""half a', KeyboardInterrupt, "2 + 2?"])

    def read(_):
        if (line := next(left)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: terminal_input))
    if terminal_input:
        assert made.read() == "2 + 2?"
    else:
        with pytest.raises(KeyboardInterrupt):
            made.read()


def test_the_command_reads_until_an_empty_line(checkpoint, capsys, monkeypatch):
    lines = iter(["12 + 7", "/new", "/help", "/nonsense", "5", ""])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    chat.main(["--checkpoint", checkpoint, *SHORT])
    said = capsys.readouterr().out
    assert said.count("reasoning +") == 2
    assert "there is no command /nonsense" in said
    assert "on cpu answers with the strategy greedy. /help" in " ".join(said.split())
    assert said.count("/think            show or hide the thoughts") == 1


def test_every_strategy_can_be_named_on_the_command_line():
    for name in STRATEGIES:
        chat.ChatArguments(checkpoint="c", strategy=name, n=8 if name in VOTES else 1)


def terminal(planted, *answers: str, **settings) -> tuple[chat.Terminal, list[str]]:
    """A terminal whose pieces of text are collected."""
    pieces: list[str] = []
    console = Console(file=io.StringIO(), highlight=False, width=200)
    made = chat.Terminal(make_chat(planted, *answers), console, show_reasoning=False, **settings)
    written = made._write
    made._write = lambda delta: (pieces.append(delta.visible), written(delta))
    return made, pieces


def shown(made: chat.Terminal) -> str:
    return made.console.file.getvalue()


def test_an_answer_is_written_token_by_token_and_its_thought_is_not(planted):
    made, pieces = terminal(planted, "4 and 5")
    made.answer("2 + 2?")
    assert "".join(pieces) == "4 and 5" and len([p for p in pieces if p]) == 5
    assert "secret" not in shown(made) and "4 and 5\n" in shown(made)
    made.command("/think")
    made.command("/new")
    made.answer("2 + 2?")
    assert "secret\n4 and 5\n" in shown(made)


def test_a_search_is_written_at_its_end(planted):
    made, pieces = terminal(planted, "4")
    made.command("/strategy consensus")
    made.answer("2 + 2?")
    # A sample has 7 + 2 tokens, and the budget of this chat pays for two of the eight.
    assert pieces == ["4"] and made.chat.usage.completion_tokens > 9
    for name in ("greedy", "mcts"):
        made.command(f"/strategy {name}")
        assert (made.chat.strategy, made.chat.options.n) == (name, 1)


def test_the_system_prompt_goes_into_the_next_prompts_and_into_the_file(planted, tmp_path):
    made, _ = terminal(planted, "4")
    made.command("/system Be brief.")
    made.answer("2 + 2?")
    made.command(f"/save {tmp_path / 'chat.json'}")
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant"]
    assert "secret" not in str(saved)
    longer = made.chat.usage.prompt_tokens
    made.command("/new")
    made.command("/system")
    made.answer("2 + 2?")
    assert made.chat.usage.prompt_tokens - longer < longer
    assert made.chat.system == "" and len(made.chat.messages) == 2


def test_an_effort_bounds_the_tokens_until_default_takes_it_back(planted):
    made, _ = terminal(planted, "4")
    made.command("/effort low")
    assert made.chat.options.total_tokens == 256
    made.command("/effort default")
    assert made.chat.options.total_tokens == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/strategy mtcs", "did you mean 'mcts'"),
        ("/effort huge", "must be one of low, medium, high, default"),
        ("/save", "needs the name of a file"),
        ("/save x.json", "nothing to save yet"),
    ],
)
def test_a_wrong_command_is_an_error_that_changes_nothing(planted, line, said):
    made, _ = terminal(planted, "4")
    before = (made.chat.strategy, made.chat.options)
    with pytest.raises(ValueError, match=said):
        made.command(line)
    assert (made.chat.strategy, made.chat.options) == before


def test_an_answer_that_is_stopped_leaves_the_turns_as_they_were(planted):
    made, _ = terminal(planted, "4 and 5")
    made.answer("2 + 2?")
    before = list(made.chat.turns)

    def stop(delta):
        raise KeyboardInterrupt

    made._write = stop
    made.answer("again")
    assert made.chat.turns == before and "stopped" in shown(made)


@pytest.mark.parametrize(
    ("lines", "question"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""one', "", 'two"""'], "one\n\ntwo"),
        (['"""', "one", '"""'], "one"),
        (['"""one'], "one"),  # the input ends
        ([], ""),
    ],
)
def test_a_question_may_have_several_lines(planted, monkeypatch, lines, question):
    made, _ = terminal(planted, "4")
    left, prompts = iter(lines), []

    def read(prompt):
        prompts.append(prompt)  # readline draws a line that is edited behind it
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert made.read() == question
    assert prompts[0] == "> " and set(prompts[1:]) <= {". "}
