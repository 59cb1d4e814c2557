"""The chat template records whether a model was trained with thoughts, and prompts follow it."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from eval.harness import __main__ as harness
from eval.harness.scoring import direct
from eval.run import main as evaluate
from pipeline.chat.prompts import encode_prompt, thinks_by_default, user_message
from pipeline.chat.template import set_default_thinking
from pipeline.model import add_reasoning_tokens, load_policy, save_policy
from pipeline.search import STRATEGIES, SearchOptions
from stages import ppo, sft

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLOSES = CHATML.replace(
    "assistant\n' }}",
    "assistant\n<think>' }}{% if not enable_thinking | default(false) %}</think>{% endif %}",
)
OPENS = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
QUESTION = "What is 2 + 3?"


def prompt(tokenizer: AutoTokenizer, **more: bool) -> str:
    return tokenizer.apply_chat_template(
        user_message(QUESTION), add_generation_prompt=True, tokenize=False, **more
    )


@pytest.fixture(params=[None, CHATML, OPENS, {"default": CHATML, "tool_use": OPENS}])
def with_thinking(request, make_model, make_tokenizer):
    tokenizer = make_tokenizer(template=None, added=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = request.param
    add_reasoning_tokens(make_model("llama", vocab_size=len(tokenizer)), tokenizer)
    return tokenizer


def test_enable_thinking_wins_and_the_default_is_as_the_model_was_trained(with_thinking):
    prompts = {think: prompt(with_thinking, enable_thinking=think) for think in (True, False)}
    assert prompt(with_thinking) == prompts[True] and thinks_by_default(with_thinking)
    before = with_thinking.chat_template
    for _ in range(2):  # the second time changes nothing
        set_default_thinking(with_thinking, False)
        assert prompt(with_thinking) == prompts[False] and not thinks_by_default(with_thinking)
        assert {think: prompt(with_thinking, enable_thinking=think) for think in prompts} == prompts
    set_default_thinking(with_thinking, True)
    assert with_thinking.chat_template == before


def test_a_template_that_closes_the_thought_opens_it_after_training_with_thoughts(
    make_model, make_tokenizer
):
    tokenizer = make_tokenizer(template=CLOSES, added=("<|im_start|>", "<|im_end|>"))
    add_reasoning_tokens(make_model("llama", vocab_size=len(tokenizer)), tokenizer)
    assert not thinks_by_default(tokenizer)
    set_default_thinking(tokenizer, True)
    assert prompt(tokenizer) == prompt(tokenizer, enable_thinking=True)
    assert thinks_by_default(tokenizer)
    set_default_thinking(tokenizer, False)
    assert tokenizer.chat_template == CLOSES


def test_the_default_is_kept_by_saving_and_by_adding_reasoning_tokens(policy, tokenizer, tmp_path):
    model, tokenizer = policy, AutoTokenizer.from_pretrained(_saved(policy, tokenizer, tmp_path))
    set_default_thinking(tokenizer, False)
    save_policy(model, tokenizer, tmp_path / "direct")
    model, loaded = load_policy(str(tmp_path / "direct"))
    add_reasoning_tokens(model, loaded)
    assert not thinks_by_default(loaded)
    assert prompt(loaded).endswith("<think></think>")


def _saved(policy, tokenizer, folder: Path) -> Path:
    save_policy(policy, tokenizer, folder / "first")
    return folder / "first"


@pytest.mark.parametrize("think", [None, True, False])
def test_a_strategy_prompts_as_the_model_was_trained_unless_think_is_set(
    policy, tokenizer, tmp_path, think
):
    tokenizer = AutoTokenizer.from_pretrained(_saved(policy, tokenizer, tmp_path))
    set_default_thinking(tokenizer, False)
    options = SearchOptions(max_sample_tokens=6, think=think)
    expected = SearchOptions(max_sample_tokens=6, think=bool(think))
    (found,), (same,) = (
        STRATEGIES["greedy"](policy, tokenizer, [QUESTION], o) for o in (options, expected)
    )
    assert found == same
    assert found.usage.prompt_tokens == len(encode_prompt(tokenizer, QUESTION, think=bool(think)))


SFT = """
model: nano
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 32
nano_vocab_size: 300
dataset: nano
size: 16
max_steps: 1
per_device_train_batch_size: 4
disable_tqdm: true
"""
PPO = """
dataset: nano
size: 8
num_rollouts: 1
questions_per_rollout: 2
completions_per_question: 2
num_minibatches: 1
ppo_epochs: 1
max_completion_length: 8
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folders: `direct` is trained without thoughts, `ppo` and `again` continue from it."""
    home = tmp_path_factory.mktemp("run")
    (home / "sft.yaml").write_text(SFT)
    (home / "ppo.yaml").write_text(PPO)
    threads = torch.get_num_threads()
    common = ["--config", f"{home}/sft.yaml", "--output_dir"]
    sft.main([*common, f"{home}/direct", "--think", "false"])
    ppo.main(
        ["--config", f"{home}/ppo.yaml", "--model", f"{home}/direct", "--output_dir", f"{home}/ppo"]
    )
    sft.main([*common, f"{home}/again", "--model", f"{home}/direct"])
    torch.set_num_threads(threads)
    return home


@pytest.mark.parametrize(("name", "thinks"), [("direct", False), ("ppo", True), ("again", True)])
def test_the_last_training_stage_sets_the_default(trained, name, thinks):
    assert thinks_by_default(AutoTokenizer.from_pretrained(trained / name)) is thinks


@pytest.mark.parametrize(("name", "thinks"), [("direct", False), ("ppo", True)])
def test_an_evaluation_prompts_as_the_model_was_trained_and_records_it(
    trained, tmp_path, name, thinks
):
    threads = torch.get_num_threads()
    folders = {}
    for options in ((), ("--think", str(thinks).lower())):
        folder = tmp_path / f"out-{len(options)}"
        evaluate(
            [
                *("--checkpoint", str(trained / name), "--suite", "nano", "--limit", "3"),
                *("--output_dir", str(folder), "--max_sample_tokens", "8", *options),
            ]
        )
        folders[options] = (folder / "metrics.json").read_text()
    torch.set_num_threads(threads)
    default, explicit = map(yaml.safe_load, folders.values())
    assert default["options"]["think"] is thinks
    assert default["options"] == explicit["options"]


@pytest.mark.parametrize(("name", "scoring"), [("direct", "direct"), ("ppo", "visible")])
def test_the_harness_scores_all_of_a_completion_without_a_thought(trained, tmp_path, name, scoring):
    arguments = ["--suites", "nano", "--limit", "2", "--only_tasks", "true"]
    harness.main(
        ["--checkpoint", str(trained / name), "--output_dir", str(tmp_path / "out"), *arguments]
    )
    written = (tmp_path / "out" / "nano" / "task" / "nano.yaml").read_text()
    assert f"!function scoring.{scoring}\n" in written


def test_an_unrequested_thought_is_not_part_of_the_answer():
    assert direct([["5 "], ["2+3=5</think>5"]], [{}, {}]) == [["5"], ["5"]]
