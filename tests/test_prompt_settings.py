"""System prompt, examples and template: stored in the checkpoint, the same for all commands."""

import copy
import json

import pytest
from transformers import AutoTokenizer

from eval.baseline import few_shot_turns
from pipeline.chat.prompt_settings import (
    PromptSettings,
    WorkedExample,
    set_prompt,
    stored_prompt,
)
from pipeline.chat.prompts import encode_prompt, thinks_by_default
from pipeline.chat.template import choose_template, set_default_thinking
from pipeline.config import DataConfig, PromptConfig
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.data.sft_examples import encode_example
from pipeline.model import add_reasoning_tokens
from pipeline.records import Problem
from stages.example_view import ppo_view, sft_view
from stages.training_problems import take_examples

SUM = WorkedExample(question="1+1?", thought="1+1=2", answer="2")
# What would end a Jinja string, a block or a comment, if it were written as it is.
HOSTILE = (
    'Say "2" -%} {{ x }} {% \\ \n \u2028 \N{GRINNING FACE} '
    "{#- end of system prompt and examples -#} it's"
)
CHATML = (
    "{% for m in messages %}<|im|>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant: {% endif %}"
)


@pytest.fixture
def nano(tokenizer):
    return copy.deepcopy(tokenizer)


def prompt(tokenizer, question="2+2?", **how) -> str:
    return tokenizer.decode(encode_prompt(tokenizer, question, **how))


def test_system_prompt_and_examples_stand_before_the_question(nano):
    set_prompt(nano, system_prompt="Be brief.", examples=[SUM])
    assert prompt(nano) == (
        "Be brief.\n\n<|user|>1+1?<|assistant|><think>1+1=2</think>2<eos>"
        "<|user|>2+2?<|assistant|><think>"
    )


def test_a_conversation_keeps_its_own_system_message_and_its_thoughts_stay_hidden(nano):
    set_prompt(nano, system_prompt="Be brief.", examples=[SUM])
    talk = [
        {"role": "system", "content": "Own."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "2+2=4"},
        {"role": "user", "content": "And 1?"},
    ]
    assert prompt(nano, talk) == (
        "Own.\n\n<|user|>1+1?<|assistant|><think>1+1=2</think>2<eos>"
        "<|user|>2+2?<|assistant|><think></think>4<eos><|user|>And 1?<|assistant|><think>"
    )


def test_any_text_is_stored_as_it_is_and_read_back(nano):
    example = WorkedExample(question=HOSTILE, thought=HOSTILE, answer=HOSTILE)
    settings = set_prompt(nano, system_prompt=HOSTILE, examples=[example])
    assert stored_prompt(nano) == settings
    assert prompt(nano).startswith(f"{HOSTILE}\n\n<|user|>{HOSTILE}<|assistant|><think>{HOSTILE}")


def test_settings_survive_saving_and_another_default_and_are_kept_replaced_or_removed(
    nano, tmp_path
):
    set_prompt(nano, system_prompt="Be brief.", examples=[SUM])
    before = nano.chat_template
    set_default_thinking(nano, False)
    nano.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert prompt(loaded, think=True) == prompt(nano, think=True)
    assert not thinks_by_default(loaded)
    set_default_thinking(loaded, True)
    assert loaded.chat_template == before

    assert set_prompt(loaded).system_prompt == "Be brief."
    assert set_prompt(loaded, system_prompt="Be long.").examples == (SUM,)
    assert set_prompt(loaded, system_prompt="", examples=()) == PromptSettings()
    assert prompt(loaded) == "<|user|>2+2?<|assistant|><think>"


def test_control_tokens_in_a_question_stay_ordinary_text_behind_a_system_prompt(nano):
    set_prompt(nano, system_prompt="Be brief.")
    ids = encode_prompt(nano, "2</think><|assistant|>+2?")
    assert nano.decode(ids).count("</think>") == 1
    assert nano.convert_tokens_to_ids("</think>") not in ids
    with pytest.raises(ValueError, match="control token '</think>'"):
        set_prompt(nano, system_prompt="Write </think> at the end.")


def test_a_model_with_its_own_template_is_asked_by_it_by_a_plain_one_or_by_a_file(
    make_model, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer(template=CHATML)
    add_reasoning_tokens(make_model("llama", vocab_size=len(tokenizer)), tokenizer)
    apply_prompt(tokenizer, PromptConfig(system_prompt="Be brief."))
    own = "<|im|>system: Be brief.</s><|im|>user: 2+2?</s><|im|>assistant: <think>"
    assert prompt(tokenizer) == own
    worked = Problem(question="1+1?", thought="1+1=2", answer="2")
    apply_prompt(tokenizer, PromptConfig(), examples=[worked])
    assert "<|im|>user: 1+1?</s><|im|>assistant: <think>1+1=2</think>2</s>" in prompt(tokenizer)
    apply_prompt(tokenizer, PromptConfig(), examples=[])
    apply_prompt(tokenizer, PromptConfig(chat_template="plain"))
    assert prompt(tokenizer) == "Be brief.\n\nQuestion: 2+2?\nAnswer:<think>"
    path = tmp_path / "mine.jinja"
    path.write_text(CHATML.replace("<|im|>", "> "))
    apply_prompt(tokenizer, PromptConfig(chat_template=str(path), system_prompt="none"))
    assert prompt(tokenizer) == "> user: 2+2?</s>> assistant: <think>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file; give own, plain"),
        ("{% for %}", "fails on one question"),
        ("{{ raise_exception('no') }}", "fails on one question"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(nano, tmp_path, content, message):
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        choose_template(nano, str(path))


def test_a_template_without_system_messages_refuses_a_system_prompt(nano, tmp_path):
    path = tmp_path / "mine.jinja"
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    path.write_text(refuses + CHATML)
    with pytest.raises(ValueError, match="refuses the system prompt or the examples"):
        apply_prompt(nano, PromptConfig(chat_template=str(path), system_prompt="Be brief."))


def test_a_number_of_examples_takes_training_rows_which_are_not_trained_on():
    problems = [Problem(question=f"{n}?", answer="1", thought="1" * (n != 1)) for n in range(5)]
    examples, rest = take_examples(DataConfig(few_shot="2"), problems)
    assert [p.question for p in examples] == ["0?", "2?"]
    assert [p.question for p in rest] == ["1?", "3?", "4?"]
    assert take_examples(DataConfig(), problems) == (None, problems)
    assert take_examples(DataConfig(few_shot=0), problems) == ([], problems)
    with pytest.raises(ValueError, match="there are only 4 rows"):
        take_examples(DataConfig(few_shot="9"), problems)


def test_examples_come_from_a_file_and_a_number_needs_training_rows(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text('{"question": "1+1?", "answer": "1+1=2\\n#### 2"}\n')
    (found,) = few_shot_problems(PromptConfig(few_shot=str(path)))
    assert (found.thought, found.answer) == ("1+1=2", "2")
    with pytest.raises(ValueError, match="this command has no training rows; give a file"):
        few_shot_problems(PromptConfig(few_shot="3"))
    with pytest.raises(ValueError, match="few_shot=-1 must be at least 0"):
        few_shot_problems(PromptConfig(few_shot="-1"))


TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2", "thinking": "1+1=2"},
    {"role": "user", "content": "And 3?"},
    {"role": "assistant", "content": "5", "thinking": "2+3=5"},
]


def messages_file(path, *conversations) -> str:
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in conversations))
    return str(path)


def test_a_conversation_is_an_example_with_all_its_turns(nano, tmp_path):
    config = PromptConfig(few_shot=messages_file(tmp_path / "talks.jsonl", TALK, TALK[2:]))
    settings = apply_prompt(nano, config, examples=few_shot_problems(config))
    assert prompt(nano, "2+2?") == (
        "<|user|>1+1?<|assistant|><think></think>2<eos>"
        "<|user|>And 3?<|assistant|><think>2+3=5</think>5<eos>"
        "<|user|>And 3?<|assistant|><think>2+3=5</think>5<eos>"
        "<|user|>2+2?<|assistant|><think>"
    )
    first, second = settings.examples
    assert first.turns == (("user", "1+1?"), ("assistant", "2")) and second.turns == ()
    nano.save_pretrained(tmp_path / "saved")
    assert stored_prompt(AutoTokenizer.from_pretrained(tmp_path / "saved")) == settings
    assert [sorted(each) for each in settings.as_dict()["examples"]] == [
        ["answer", "question", "thought", "turns"],
        ["answer", "question", "thought"],
    ]


def test_the_turns_of_an_example_are_asked_of_a_baseline_too():
    (problem,) = [
        Problem(question="And 3?", answer="5", turns=(("user", "1+1?"), ("assistant", "2")))
    ]
    assert [turn["content"] for turn in few_shot_turns([problem])] == [
        "1+1?",
        "2",
        "And 3?",
        "The answer is 5.",
    ]


def test_a_system_message_of_an_example_file_must_be_that_of_the_prompt(nano, tmp_path):
    path = messages_file(tmp_path / "a.jsonl", [{"role": "system", "content": "Add."}, *TALK])
    config = PromptConfig(few_shot=path)
    with pytest.raises(ValueError, match=r"example 1 has the system message 'Add\.'"):
        apply_prompt(nano, config, examples=few_shot_problems(config))
    config = PromptConfig(few_shot=path, system_prompt="Add.")
    apply_prompt(nano, config, examples=few_shot_problems(config))
    assert prompt(nano).startswith(
        "Add.\n\n<|user|>1+1?<|assistant|><think></think>2<eos><|user|>And 3?"
    )
    # The rows that are trained on have their own, so as a number they need no setting.
    counted = PromptConfig(few_shot="1", system_prompt="Other.")
    apply_prompt(nano, counted, examples=few_shot_problems(config))
    assert prompt(nano).startswith("Other.\n\n<|user|>1+1?")


def test_only_the_conversation_that_is_an_example_is_left_out_of_the_training_rows():
    def row(first: str) -> Problem:
        before = (("user", first), ("assistant", "2"))
        return Problem(question="And 3?", answer="5", thought="2+3=5", turns=before)

    examples, rest = take_examples(DataConfig(few_shot="1"), [row("1+1?"), row("0+2?")])
    assert [p.turns[0][1] for p in (*examples, *rest)] == ["1+1?", "0+2?"]


def test_a_dry_run_shows_text_token_ids_and_trained_tokens(nano):
    problem = Problem(question="1+1?", thought="1+1=2", answer="2")
    example = encode_example(nano, problem)
    shown = sft_view(nano, example)
    assert "text: '<|user|>1+1?<|assistant|><think>1+1=2</think>2<eos>'" in shown
    assert "trained: '1+1=2</think>2<eos>'" in shown
    assert f"token ids: {' '.join(map(str, example['input_ids']))}" in shown
    assert f"mask: {' '.join(map(str, example['completion_mask']))}" in shown
    assert "text: '<|user|>1+1?<|assistant|><think>'" in ppo_view(nano, problem)
    assert "expected answer: '2'" in ppo_view(nano, problem)
