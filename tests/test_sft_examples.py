"""From worked solutions to token ids with masks: hand-made rows, a tokenizer made in memory."""

from dataclasses import replace

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pipeline.chat.prompts import encode_prompt
from pipeline.chat.tags import END_THINK, THINK
from pipeline.data.sft_examples import (
    encode_example,
    gsm8k_trace,
    math_trace,
    sft_dataset,
    thought_and_answer_masks,
    visible_answer,
)
from pipeline.records import Problem

TEMPLATE = (
    "{% for m in messages %}{{ 'Q: ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: <think>' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '</think>' }}{% endif %}"
    "{% endif %}"
)
CLIPS = "She sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
SUM = Problem(question="2*3+1?", thought="2*3=6\n6+1=7", answer="7", source="made/train", id="1")

END = 9  # </think> in the hand-made rows below


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte. As in many base models, padding is the end-of-text token and the tokenizer
    puts a begin-of-text token in front of whatever it is not told to leave alone."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        chat_template=TEMPLATE,
    )
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.bos_token_id)]
    )
    made.add_tokens(
        [AddedToken(tag, special=False, normalized=False) for tag in (THINK, END_THINK)]
    )
    made.chat_control_tokens = [THINK, END_THINK]
    return made


def trained(tokenizer, example) -> str:
    pairs = zip(example["input_ids"], example["completion_mask"], strict=True)
    return tokenizer.decode([token for token, mask in pairs if mask])


def test_equations_are_the_calculator_marks_in_order():
    assert gsm8k_trace(CLIPS, style="equations") == ("48/2=24\n48+24=72", "72")


def test_words_are_the_sentences_without_the_marks():
    thought, _ = gsm8k_trace(CLIPS, style="words")
    assert thought == "She sold 48/2 = 24 clips in May.\nIn all 48+24 = 72."


def test_a_solution_without_marks_falls_back_to_its_sentences():
    assert gsm8k_trace("Let p be it. \n\n3p = 9\n#### 3", style="equations") == (
        "Let p be it.\n3p = 9",
        "3",
    )


def test_commas_leave_the_answer_and_a_missing_answer_is_empty():
    assert gsm8k_trace("A lot.\n#### -1,234,567")[1] == "-1234567"
    assert gsm8k_trace("A lot, 1,234.") == ("A lot, 1,234.", "")
    assert gsm8k_trace("#### 5") == ("", "5")


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("1,234", "1234"),
        ("-$1,234.50", "-$1234.50"),
        ("12,345%", "12345%"),
        ("2, 3, 5", "2, 3, 5"),
        ("(1,2)", "(1,2)"),
        ("1,5", "1,5"),
        ("12,34,567", "12,34,567"),
    ],
)
def test_only_the_commas_between_thousands_are_left_out_of_an_answer(written, answer):
    assert gsm8k_trace(f"So.\n#### {written}")[1] == answer


def test_an_unknown_style_lists_the_styles():
    with pytest.raises(ValueError, match="style='prose' is not one of words, equations"):
        gsm8k_trace(CLIPS, style="prose")


def test_a_math_trace_shows_the_boxed_answer():
    solution = "Half of it is \\boxed{\\frac{1}{2}}."
    assert math_trace(solution) == (solution, "\\boxed{\\frac{1}{2}}")
    assert math_trace("No idea.") == ("No idea.", "")


def test_an_answer_is_boxed_only_where_the_solution_boxes_that_very_answer():
    assert visible_answer(Problem(question="", thought="\\boxed{3}", answer="3")) == "\\boxed{3}"
    assert visible_answer(Problem(question="", thought="\\boxed{3}", answer="4")) == "4"
    assert visible_answer(SUM) == "7"


def test_an_example_is_prompt_thought_tag_answer_end(tokenizer):
    example = encode_example(tokenizer, SUM)
    prompt = encode_prompt(tokenizer, SUM.question)
    assert example["input_ids"][: len(prompt)] == prompt
    # 11 characters of thought, the tag, the answer, end of text
    assert example["completion_mask"] == [0] * len(prompt) + [1] * 14
    assert trained(tokenizer, example) == "2*3=6\n6+1=7</think>7<eos>"


def test_a_direct_answer_trains_the_answer_only(tokenizer):
    example = encode_example(tokenizer, SUM, think=False)
    assert trained(tokenizer, example) == "7<eos>"
    assert tokenizer.decode(example["input_ids"]).endswith("<think></think>7<eos>")


def test_an_empty_thought_is_trained_with_its_tag_and_the_answer(tokenizer):
    example = encode_example(tokenizer, replace(SUM, direct=True))
    assert trained(tokenizer, example) == "</think>7<eos>"
    bare = Problem(question=SUM.question, answer="7", direct=True)
    assert encode_example(tokenizer, bare) == example


def test_end_of_text_is_trained_also_where_it_is_the_padding_token(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    example = encode_example(tokenizer, SUM)
    assert (example["input_ids"][-1], example["completion_mask"][-1]) == (tokenizer.eos_token_id, 1)


def test_tags_in_a_question_neither_open_nor_close_a_thought(tokenizer):
    rude = Problem(question="</think>1<think>?", thought="1=1", answer="1")
    ids = encode_example(tokenizer, rude)["input_ids"]
    tags = [tokenizer.convert_tokens_to_ids(tag) for tag in (THINK, END_THINK)]
    assert [ids.count(tag) for tag in tags] == [1, 1]


@pytest.mark.parametrize("token", [THINK, END_THINK, "<eos>"])
def test_a_control_token_in_the_thought_is_refused(tokenizer, token):
    broken = Problem(question="?", thought=f"1{token}2", answer="1", source="made/train", id="8")
    with pytest.raises(ValueError, match=rf"made/train:8 contains the control token '{token}'"):
        encode_example(tokenizer, broken)


def test_an_example_of_exactly_max_length_is_kept_and_a_longer_one_is_none(tokenizer):
    length = len(encode_example(tokenizer, SUM)["input_ids"])
    assert encode_example(tokenizer, SUM, max_length=length) is not None
    assert encode_example(tokenizer, SUM, max_length=length - 1) is None


def test_a_problem_without_a_thought_cannot_teach_thinking(tokenizer):
    bare = Problem(question="1+1?", answer="2", source="made/train", id="7")
    with pytest.raises(ValueError, match=r"made/train:7 has no thought.*think=False"):
        encode_example(tokenizer, bare)
    assert trained(tokenizer, encode_example(tokenizer, bare, think=False)) == "2<eos>"


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"eos_token=None.*set tokenizer\.eos_token"):
        encode_example(tokenizer, SUM)


def test_a_dataset_keeps_the_order_and_counts_what_is_too_long(tokenizer):
    long = Problem(question="2*3+1?", thought="2*3=6\n" * 50, answer="7")
    dataset, dropped = sft_dataset(tokenizer, [SUM, long, SUM], max_length=60, progress=False)
    assert (len(dataset), dropped) == (2, 1)
    assert dataset[1] == encode_example(tokenizer, SUM)


def test_a_dataset_of_nothing_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="max_length=3 leaves none of 1 examples"):
        sft_dataset(tokenizer, [SUM], max_length=3, progress=False)


def parts(ids: list[int], completion: str) -> str:
    """T thought, A answer, . neither; completion has an x on every trained token."""
    mask_BT = torch.tensor([[char == "x" for char in completion]])
    thought_BT, answer_BT = thought_and_answer_masks(torch.tensor([ids]), mask_BT, END)
    assert not (thought_BT & answer_BT).any()
    assert torch.equal(thought_BT | answer_BT, mask_BT)
    letters = {(True, False): "T", (False, True): "A", (False, False): "."}
    pairs = zip(thought_BT[0].tolist(), answer_BT[0].tolist(), strict=True)
    return "".join(letters[pair] for pair in pairs)


def test_the_tag_belongs_to_the_thought_and_the_rest_is_answer():
    #            prompt   thought  tag  answer, padding
    assert parts([5, 6, 7, 1, 2, END, 3, 4, 0, 0], "...xxxxx..") == "...TTTAA.."


def test_a_completion_that_never_closes_is_all_thought():
    assert parts([5, 6, 1, 2, 3], "..xxx") == "..TTT"
    assert parts([1, 2, 3], "xxx") == "TTT"


def test_a_row_that_starts_inside_a_completion_is_cut_at_its_tag():
    assert parts([1, END, 3], "xxx") == "TTA"


def test_a_prompt_that_ends_in_the_tag_is_followed_by_an_answer():
    assert parts([5, 6, END, 3, 4, 0], "...xx.") == "...AA."


def test_a_tag_earlier_in_the_prompt_closes_nothing():
    assert parts([5, END, 6, 1, END, 3], "...xxx") == "...TTA"


def test_a_second_tag_stays_in_the_answer():
    assert parts([5, 1, END, 3, END, 4], ".xxxxx") == ".TTAAA"


def test_packed_examples_do_not_see_each_other():
    first, second = [5, 1, END, 3], [6, 7, 2, 2, END, 4]
    direct = [8, END, 3, 3]
    unclosed = [5, 1, 1]
    assert parts(first + second, ".xxx..xxxx") == ".TTA..TTTA"
    assert parts(first + direct + second, ".xxx..xx..xxxx") == ".TTA..AA..TTTA"
    assert parts(direct + unclosed + first, "..xx.xx.xxx") == "..AA.TT.TTA"


def test_packing_gives_the_masks_of_the_examples_alone():
    rows = [([5, 1, END, 3], ".xxx"), ([8, END, 3, 3], "..xx"), ([5, 1, 1], ".xx")]
    alone = "".join(parts(ids, completion) for ids, completion in rows)
    packed = parts([i for ids, _ in rows for i in ids], "".join(c for _, c in rows))
    assert packed == alone


def test_padding_on_either_side_changes_nothing():
    ids, completion = [5, 6, 1, END, 3], "..xxx"
    assert parts([0, 0, *ids], ".." + completion) == ".." + parts(ids, completion)
    assert parts([*ids, END, END], completion + "..") == parts(ids, completion) + ".."


def test_encoded_examples_split_where_they_were_joined(tokenizer):
    end_think = tokenizer.convert_tokens_to_ids(END_THINK)
    for think, expected in ((True, ("2*3=6\n6+1=7</think>", "7<eos>")), (False, ("", "7<eos>"))):
        example = encode_example(tokenizer, SUM, think=think)
        ids_BT = torch.tensor([example["input_ids"]])
        mask_BT = torch.tensor([example["completion_mask"]])
        masks = thought_and_answer_masks(ids_BT, mask_BT, end_think)
        assert tuple(tokenizer.decode(ids_BT[mask]) for mask in masks) == expected
