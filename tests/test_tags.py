"""`</think>` is fitted before a short SFT, measured during it, and sampled after it."""

import copy
import math

import pytest
import torch

from pipeline.data.sft_examples import sft_dataset
from pipeline.model import add_reasoning_tokens, freeze_layers
from pipeline.records import Problem
from pipeline.sft.tags import (
    closed_share,
    closing_probabilities,
    fit_end_think,
    warn_of_open_thoughts,
)
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from tests.conftest import FAMILIES

PROBLEMS = [
    Problem(question=f"What is {a} + {b}?", answer=str(a + b), thought=f"{a}+{b}={a + b}")
    for a in range(2, 10)
    for b in range(2, 8)
]
SHAPES = [("llama", True), ("qwen3", False), ("gpt2", True), ("mistral", False)]


@pytest.fixture
def prepared(make_model, make_tokenizer):
    """`prepared("llama", tie=True)`: (model with tags, tokenizer, rows)."""

    def make(family: str, *, tie: bool):
        tokenizer = make_tokenizer()
        model = make_model(family, vocab_size=len(tokenizer), tie=tie)
        add_reasoning_tokens(model, tokenizer)
        rows, _ = sft_dataset(tokenizer, PROBLEMS, progress=False)
        return model, tokenizer, rows

    return make


@pytest.mark.parametrize(("family", "tie"), SHAPES)
def test_the_fit_raises_its_probability_and_changes_no_other_weight(family, tie, prepared):
    model, tokenizer, rows = prepared(family, tie=tie)
    end_id = tokenizer.convert_tokens_to_ids("</think>")
    before = copy.deepcopy(model.state_dict())
    fit = fit_end_think(model, tokenizer, list(rows))
    assert fit.after > 5 * fit.before
    head = model.get_output_embeddings().weight
    for name, weight in model.state_dict().items():
        changed = (weight != before[name]).nonzero()
        if weight.shape == head.shape and torch.equal(weight, head):
            assert set(changed[:, 0].tolist()) == {end_id}
        else:
            assert len(changed) == 0, name


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.float32) for family in ("llama", "granite", "nanochat")]
    + [("llama", torch.bfloat16)],
)
def test_the_fit_reports_the_probabilities_that_the_model_gives(family, dtype, prepared):
    model, tokenizer, rows = prepared(family, tie=False)
    model.to(dtype)
    end_id = tokenizer.convert_tokens_to_ids("</think>")

    @torch.no_grad()
    def of_model() -> float:
        found = []
        for row in rows:
            due = row["input_ids"].index(end_id)
            logits_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].float()
            found.append(float(logits_TV[due - 1].softmax(dim=-1)[end_id]))
        return sum(found) / len(found)

    before = of_model()
    fit = fit_end_think(model, tokenizer, list(rows))
    assert fit.before == pytest.approx(before, rel=1e-2)
    assert fit.after == pytest.approx(of_model(), rel=1e-2)
    assert fit.after > fit.before


def test_a_row_that_is_learned_is_left_as_it_is(prepared):
    model, tokenizer, rows = prepared("llama", tie=False)
    fit_end_think(model, tokenizer, list(rows))
    with torch.no_grad():
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
        head.bias[tokenizer.convert_tokens_to_ids("</think>")] = 20.0  # always closes
    before = head.weight.detach().clone()
    fit = fit_end_think(model, tokenizer, list(rows))
    assert fit.before == fit.after > 0.9
    assert torch.equal(head.weight, before)


def test_without_a_thought_there_is_nothing_to_fit(prepared):
    model, tokenizer, _ = prepared("llama", tie=True)
    rows, _ = sft_dataset(tokenizer, PROBLEMS[:4], think=False, progress=False)
    assert fit_end_think(model, tokenizer, list(rows)) is None


def test_probabilities_are_means_where_the_tag_is_due_and_elsewhere():
    # p of token 2: 1/2, 1/4 and 3/4.
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, math.log(2), 0.0], [0.0, 0.0, 0.0]])
    logits[2, 2] = math.log(6)
    found = closing_probabilities(logits, torch.tensor([2, 0, 2]), end_id=2)
    assert found == {
        "tags/close": pytest.approx(0.625),
        "tags/close_elsewhere": pytest.approx(0.25),
    }
    assert closing_probabilities(logits[1:2], torch.tensor([0]), end_id=2).keys() == {
        "tags/close_elsewhere"
    }


def test_the_share_of_closed_thoughts_is_sampled_and_a_low_one_is_said(planted, tokenizer, capsys):
    prompt = tokenizer.encode("<think>", add_special_tokens=False)
    for text, expected in (("1</think>1<eos>", 1.0), ("1+1+1+1<eos>", 0.0)):
        share = closed_share(planted({text: 1.0}), tokenizer, [prompt] * 2, max_new_tokens=12)
        assert share == expected
        warn_of_open_thoughts(share, "train longer")
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert "0% of" in said
    assert said.endswith("train longer\n")


@pytest.mark.parametrize(
    ("tie", "lora"),
    [
        (False, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_thoughts_close_after_a_hundred_steps_of_eight(tie, lora, prepared, tmp_path):
    """Random trunks of two layers, so the rate is that of training from scratch."""
    from peft import LoraConfig

    model, tokenizer, rows = prepared("llama", tie=tie)
    fit_end_think(model, tokenizer, list(rows))
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    modules = {"embed_tokens": tags} | ({} if tie else {"lm_head": tags})
    args = ReasoningSFTConfig(
        output_dir=str(tmp_path),
        max_steps=100,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=20,
    )
    trainer = ReasoningSFTTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", trainable_token_indices=modules)
        if lora
        else None,
    )
    trainer.train()
    last = [row for row in trainer.state.log_history if "tags/close" in row][-1]
    assert last["tags/close"] > 0.9
    assert last["tags/close_elsewhere"] < 0.05


# ---- frozen layers ----


@pytest.mark.parametrize(("family", "tie"), SHAPES)
def test_layers_above_frozen_ones_have_the_gradients_of_full_training(family, tie, prepared):
    model, _, rows = prepared(family, tie=tie)
    ids = torch.tensor([rows[0]["input_ids"]])
    gradients = []
    for count in (0, 1):
        model.zero_grad()
        freeze_layers(model, count)
        model(input_ids=ids, labels=ids).loss.backward()
        named = model.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
    full, frozen = gradients
    layers = [name for name in full if ".0." in name]
    assert layers
    assert not set(layers) & frozen.keys()
    above = [name for name in full if ".1." in name]
    assert above
    for name in above:
        torch.testing.assert_close(frozen[name], full[name])
    # A tied row learns as LM head.
    assert any(p.grad is not None for p in model.get_output_embeddings().parameters())


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_backward_pass_reaches_a_frozen_layer(family, tie, prepared):
    model, _, rows = prepared(family, tie=tie)
    freeze_layers(model, 1)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    reached = []
    for number, layer in enumerate(layers):
        layer.register_full_backward_hook(lambda *_, n=number: reached.append(n))
    outputs = []
    layers[0].register_forward_hook(lambda _, args, output: outputs.append(output))
    ids = torch.tensor([rows[0]["input_ids"]])
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert reached == [1]
    (output,) = outputs
    hidden = output[0] if isinstance(output, tuple) else output
    assert not hidden.requires_grad  # no activation of the frozen layer was stored
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_no_backward_pass_reaches_a_frozen_layer_whose_input_is_made_to_require_gradients(prepared):
    model, _, rows = prepared("llama", tie=True)
    freeze_layers(model, 1)
    model.enable_input_require_grads()  # as some ways of gradient checkpointing do
    reached = []
    model.model.layers[0].register_full_backward_hook(lambda *_: reached.append(0))
    ids = torch.tensor([rows[0]["input_ids"]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert not reached


def test_as_many_frozen_layers_as_there_are_is_one_line(prepared):
    model, *_ = prepared("llama", tie=True)
    with pytest.raises(ValueError, match="frozen_layers=2 must be less than the 2 layers of Llama"):
        freeze_layers(model, 2)
