"""Character offsets to tokens, for pieces that join and for pieces that do not."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.chat.tags import END_THINK, THINK
from pipeline.chat.token_offsets import (
    MAX_SHARED,
    decode_completions,
    offsets_to_tokens,
    token_end_offsets,
)


@pytest.fixture(scope="module")
def metaspace() -> PreTrainedTokenizerFast:
    """Words as SentencePiece keeps them: the first one loses its space when it is decoded."""
    words = ["▁two", "▁and", "▁three", "."]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=".", clean_up_tokenization_spaces=False
    )


def test_the_ends_of_plain_pieces_add_up(tokenizer):
    ids = tokenizer.encode("12+7=19\n19*3=57", add_special_tokens=False)
    ends = token_end_offsets(tokenizer, ids)
    assert ends == [len(tokenizer.decode(ids[: k + 1])) for k in range(len(ids))]
    assert ends[-1] == len("12+7=19\n19*3=57")


def test_a_token_holds_its_characters_when_pieces_lose_their_leading_space(metaspace):
    # "two and three." with pieces of 3, 4, 6 and 1 characters; each alone has no space before it.
    assert metaspace.decode([0, 1, 2, 3]) == "two and three."
    assert token_end_offsets(metaspace, [0, 1, 2, 3]) == [3, 7, 13, 14]


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(make_tokenizer):
    letters = make_tokenizer()  # one token a byte
    ids = letters.encode("a√b", add_special_tokens=False)
    assert len(ids) == 5  # the root has three bytes
    assert token_end_offsets(letters, ids) == [1, 1, 1, 2, 3]


def test_broken_bytes_in_a_text_keep_the_ends_in_order(make_tokenizer):
    letters = make_tokenizer()
    root = letters.encode("√", add_special_tokens=False)
    ids = [*letters.encode("a", add_special_tokens=False), root[0], root[0], *root, root[0]]
    ends = token_end_offsets(letters, ids)
    assert ends == sorted(ends)
    assert ends[-1] == len(letters.decode(ids))


def test_a_reward_goes_to_the_token_that_holds_its_character():
    ends = [2, 2, 5, 6]  # "ab", "", "cde", "f"
    rewards = [(offset, float(offset)) for offset in range(6)]
    tokens = [token for token, _ in offsets_to_tokens(rewards, ends)]
    assert tokens == [0, 0, 2, 2, 2, 3]


def test_a_reward_behind_the_text_goes_to_the_last_token():
    assert offsets_to_tokens([(9, 1.0)], ends=[2, 4]) == [(1, 1.0)]


def test_the_end_of_a_step_is_found_in_the_sampled_tokens(tokenizer):
    text = "12+7=19\n19*3=57</think>57"
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    ((token, _),) = offsets_to_tokens([(text.index("9\n"), 1.0)], token_end_offsets(tokenizer, ids))
    assert tokenizer.decode(ids[: token + 1]) == "12+7=19"


@pytest.mark.parametrize("endless", [False, True], ids=["characters", "bytes that end none"])
def test_time_grows_with_the_length_and_not_with_its_square(make_tokenizer, endless):
    letters, calls = make_tokenizer(), []
    ids = letters.encode("√" * 40, add_special_tokens=False)
    if endless:
        ids = ids[:3] + ids[:1] * 120

    class Counting:
        batch_decode = letters.batch_decode

        def decode(self, ids: list[int]) -> str:
            calls.append(len(ids))
            return letters.decode(ids)

    ends = token_end_offsets(Counting(), ids)
    # The character before, and this one.
    assert max(calls[1:]) <= (2 * MAX_SHARED if endless else 6)
    assert ends == sorted(ends) and ends[-1] == len(letters.decode(ids))


def test_only_the_token_of_a_tag_reads_as_the_tag(tokenizer):
    def ids(*pieces: str) -> list[int]:
        return [i for text in pieces for i in tokenizer.encode(text, add_special_tokens=False)]

    end = tokenizer.convert_tokens_to_ids(END_THINK)
    spelled = ids("2+3=5", "</", "think>", "5")
    assert end not in spelled and tokenizer.decode(spelled) == "2+3=5</think>5"
    own = ids("2+3=5", END_THINK, "5")
    both = [*ids("<", "think>2+3"), *spelled, *own]
    assert decode_completions(tokenizer, [spelled, own, both, ids(THINK), []]) == [
        "2+3=5[/think]5",
        "2+3=5</think>5",
        "[think]2+32+3=5[/think]52+3=5</think>5",
        "<think>",
        "",
    ]
