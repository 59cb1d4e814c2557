"""Pieces of text of a completion: nothing of a thought, and the same text whatever the pieces."""

import random

import pytest

from pipeline.chat.tags import END_THINK, THINK
from pipeline.serve.text_stream import TextStream, split_text


@pytest.fixture
def ids(tokenizer):
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    return encode


def stream(tokenizer, **settings) -> TextStream:
    return TextStream(tokenizer, **{"in_thought": True, **settings})


@pytest.mark.parametrize(
    ("completion", "thought", "visible"),
    [
        (f"2+3=5{END_THINK}5<eos>", "2+3=5", "5"),
        (f"  a b \n{END_THINK}\n\n the  answer \n<eos>", "a b", "the  answer"),
        ("never closed", "never closed", ""),
        (f"a{END_THINK}", "a", ""),
        (f"a{END_THINK}b{THINK}c{END_THINK}d", "ac", "bd"),
        (f"a{END_THINK}b{THINK}c", "ac", "b"),
        (f"{THINK}a{END_THINK}b", "a", "b"),
        (f"é€😀{END_THINK}é€😀<eos>", "é€😀", "é€😀"),
    ],
)
def test_thought_and_answer_are_told_apart(tokenizer, ids, completion, thought, visible):
    assert split_text(stream(tokenizer), ids(completion)) == (thought, visible)


def test_a_completion_that_begins_with_the_answer_has_no_thought(tokenizer, ids):
    assert split_text(stream(tokenizer, in_thought=False), ids("5<eos>")) == ("", "5")


@pytest.mark.parametrize(
    ("stop", "visible"),
    [
        (["b"], "a"),
        (["a b"], ""),
        (["c d e"], "a b"),
        (["zz", " d"], "a b c"),
        (["c dx", "never"], "a b c d e"),
        (["e "], "a b c d e"),
        (["hidden"], "a b c d e"),
    ],
)
def test_the_answer_ends_before_a_stop_text(tokenizer, ids, stop, visible):
    made = stream(tokenizer, stop=stop)
    found = split_text(made, ids(f"hidden a b{END_THINK}a b c d e<eos>"))
    assert found == ("hidden a b", visible)
    assert made.stopped == (visible != "a b c d e")


def test_a_piece_is_given_as_soon_as_no_stop_text_can_begin_in_it(tokenizer, ids):
    made = stream(tokenizer, in_thought=False, stop=["xyz"])
    given = [made.feed(token).visible for token in ids("a x y")]
    assert "".join(given) == "a x y"[: len("".join(given))] and "a" in "".join(given)
    held = stream(tokenizer, in_thought=False, stop=["aaab"])
    assert [held.feed(token).visible for token in ids("a")] == [""]
    assert held.finish().visible == "a"


def test_the_text_does_not_depend_on_how_it_is_cut_into_tokens(tokenizer, ids):
    thought, answer = "12+7=19 as 2+7=9", "It is é19, or nineteen."
    end_think = tokenizer.convert_tokens_to_ids(END_THINK)
    for i in range(0, len(thought), 4):
        for j in range(len(answer)):
            tokens = [*ids(thought[:i]), *ids(thought[i:]), end_think]
            tokens += [*ids(answer[:j]), *ids(answer[j:])]
            made = stream(tokenizer, stop=["7=1", " nine"])
            assert split_text(made, tokens) == (thought, "It is é19, or")


def test_pieces_joined_are_the_text_of_all_tokens_for_random_completions(tokenizer):
    """Any ids, also halves of characters: the joined pieces are the decoded visible tokens."""
    rng = random.Random(0)
    end_think = tokenizer.convert_tokens_to_ids(END_THINK)
    tags = {end_think, tokenizer.convert_tokens_to_ids(THINK)}
    ordinary = [i for i in range(len(tokenizer)) if i not in tags]
    for _ in range(60):
        hidden, shown = ([rng.choice(ordinary) for _ in range(12)] for _ in range(2))
        _, visible = split_text(stream(tokenizer), [*hidden, end_think, *shown])
        assert visible == tokenizer.decode(shown, skip_special_tokens=True).strip()
