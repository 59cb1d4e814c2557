"""The two-part loss: which tokens it looks at, what it comes to, and how batching leaves it."""

import copy
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn

from pipeline.chat.tags import END_THINK
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import add_reasoning_tokens
from pipeline.records import Problem
from pipeline.sft.length_buckets import BucketSampler
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer, token_cross_entropy

PROBLEMS = [
    Problem(question=f"What is {a} + {b} + {c}?", answer=str(a + b + c), thought=thought)
    for a, b, c in [(2, 3, 4), (12, 7, 1), (5, 5, 50), (9, 1, 3), (6, 7, 8), (30, 4, 5), (1, 1, 1)]
    for thought in [f"{a}+{b}={a + b}\n{a + b}+{c}={a + b + c}"]
] + [Problem(question="How many are 2 and 2?", answer="4", thought="2+2=4")]


@pytest.fixture(scope="module")
def dataset(tokenizer) -> Dataset:
    return sft_dataset(tokenizer, PROBLEMS, progress=False)[0]


@pytest.fixture
def make_trainer(tokenizer, dataset, tmp_path):
    def make(model: nn.Module, **options: object) -> ReasoningSFTTrainer:
        args = ReasoningSFTConfig(
            **{
                "output_dir": str(tmp_path),
                "per_device_train_batch_size": 8,
                "learning_rate": 0.1,
                "optim": "sgd",
                "lr_scheduler_type": "constant",
                "max_length": 128,
                "save_strategy": "no",
                "logging_steps": 1,
                "disable_tqdm": True,
                **options,
            }
        )
        return ReasoningSFTTrainer(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
        )

    return make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dft"}, "loss_type='dft' does nothing here: the loss has the parts of"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 does nothing here: the"),
        ({"completion_only_loss": False}, "completion_only_loss=False would train on prompts"),
        ({"muon": True, "optim": "sgd"}, "optim='sgd' does nothing with muon=true, which brings"),
        ({"muon": True, "adam_epsilon": 1.0}, "adam_epsilon=1.0 does nothing with muon=true"),
    ],
)
def test_an_option_without_effect_is_refused_in_one_line(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ReasoningSFTConfig(output_dir=str(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_options_that_say_what_sft_does_anyway_are_accepted(tmp_path):
    options = {"loss_type": "nll", "label_smoothing_factor": 0.0, "completion_only_loss": True}
    args = ReasoningSFTConfig(output_dir=str(tmp_path), optim="sgd", **options)
    assert args.completion_only_loss and args.optim == "sgd"


class Fixed(nn.Module):
    """Gives the same logits whatever it reads."""

    def __init__(self, logits_BTV: torch.Tensor):
        super().__init__()
        self.logits_BTV = nn.Parameter(logits_BTV)

    def forward(self, **inputs: object) -> dict[str, torch.Tensor]:
        return {"logits": self.logits_BTV}


def batch_of(trainer: ReasoningSFTTrainer) -> dict[str, torch.Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_without_logits_of_prompts_loss_gradients_and_figures_are_the_same(
    make_trainer, tiny_policy, monkeypatch
):
    found = {}
    for limit in (2**24, 0):
        monkeypatch.setattr("pipeline.sft.trainer.MANY_LOGITS", limit)
        trainer = make_trainer(copy.deepcopy(tiny_policy).train())
        loss = trainer.compute_loss(trainer.model, batch_of(trainer))
        loss.backward()
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        found[limit] = loss.item(), gradient, {k: v[0] for k, v in trainer.metrics.items()}
    full, skipped = found.values()
    assert skipped[0] == pytest.approx(full[0], rel=1e-5)
    torch.testing.assert_close(skipped[1], full[1], rtol=1e-3, atol=1e-6)
    assert skipped[2] == pytest.approx(full[2], rel=1e-4)
    assert {"loss/thought", "tags/close", "tags/close_elsewhere"} <= set(full[2])


# ---- which tokens are trained ----


def test_prompts_have_no_labels(make_trainer, tiny_policy, tokenizer):
    batch = batch_of(make_trainer(tiny_policy))
    trained = batch["labels"] != -100
    assert trained.any(dim=1).all()
    rows = zip(batch["labels"], trained, strict=True)
    texts = {tokenizer.decode(labels[mask]) for labels, mask in rows}
    assert texts == {f"{p.thought}{END_THINK}{p.answer}<eos>" for p in PROBLEMS}


def test_prompts_and_padding_do_not_contribute_to_the_loss(make_trainer, tiny_policy):
    trainer = make_trainer(tiny_policy)
    batch = batch_of(trainer)
    fixed = Fixed(torch.randn(*batch["labels"].shape, 320))
    trainer.compute_loss(fixed, batch).backward()
    looked_at_BT = fixed.logits_BTV.grad.abs().sum(dim=-1) > 0
    # The logits of a position predict the token behind it.
    assert torch.equal(looked_at_BT[:, :-1], (batch["labels"] != -100)[:, 1:])
    assert not looked_at_BT[:, -1].any()


# ---- what the loss comes to ----

# A prompt of one token, a thought of two with its </think>, an answer of one with its end.
PROMPT, STEP, ANSWER, EOS = 0, 1, 2, 3


@pytest.fixture
def by_hand(make_trainer, tiny_policy, tokenizer):
    """(trainer, its batch, a model whose loss on each token is known)."""

    def make(**options: float):
        trainer = make_trainer(tiny_policy.train(), **options)
        end_think = tokenizer.convert_tokens_to_ids(END_THINK)
        ids = torch.tensor([[PROMPT, STEP, end_think, ANSWER, EOS]])
        labels = torch.tensor([[-100, STEP, end_think, ANSWER, EOS]])
        logits = torch.full((1, 5, 320), -1e9)
        # Odds of the right token against one wrong one: 1, 3, 1 and 7 to 1.
        for position, odds in enumerate([1.0, 3.0, 1.0, 7.0]):
            logits[0, position, 9] = 0.0
            logits[0, position, ids[0, position + 1]] = math.log(odds)
        return trainer, {"input_ids": ids, "labels": labels}, Fixed(logits)

    return make


def test_the_loss_is_the_sum_of_both_means(by_hand):
    trainer, batch, model = by_hand()
    # Thought: -ln 1/2 and -ln 3/4; answer: -ln 1/2 and -ln 7/8; each part is a mean.
    thought = (math.log(2) + math.log(4 / 3)) / 2
    answer = (math.log(2) + math.log(8 / 7)) / 2
    assert trainer.compute_loss(model, batch).item() == pytest.approx(thought + answer, rel=1e-6)
    assert trainer.metrics["loss/thought"] == [pytest.approx(thought, rel=1e-6)]


@pytest.mark.parametrize(("thought", "answer"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_the_weights_of_the_parts_are_configurable(by_hand, thought, answer):
    trainer, batch, model = by_hand(thought_weight=thought, answer_weight=answer)
    expected = thought * math.log(8 / 3) / 2 + answer * math.log(16 / 7) / 2
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected, rel=1e-6)


class Recording(Fixed):
    """Keeps the ids that it was called with."""

    def forward(self, input_ids: torch.Tensor, **inputs: object) -> dict[str, torch.Tensor]:
        self.seen = input_ids
        return super().forward(**inputs)


def test_a_masked_thought_is_hidden_from_the_input_and_trained_whole(by_hand):
    trainer, batch, model = by_hand(thought_mask_share=1.0)
    model = Recording(model.logits_BTV.data)
    loss = trainer.compute_loss(model, batch).item()
    pad, end_think = trainer.processing_class.pad_token_id, trainer.end_think_id
    # Prompt, tags and answer stay as they are, and the labels are those of the whole thought.
    assert model.seen.tolist() == [[PROMPT, pad, end_think, ANSWER, EOS]]
    assert loss == pytest.approx(math.log(8 / 3) / 2 + math.log(16 / 7) / 2, rel=1e-6)


def test_evaluation_masks_nothing(by_hand):
    trainer, batch, model = by_hand(thought_mask_share=1.0)
    model = Recording(model.logits_BTV.data).eval()
    trainer.compute_loss(model, batch)
    assert torch.equal(model.seen, batch["input_ids"])


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_the_share_of_masked_tokens_is_the_one_that_was_set(by_hand, share):
    trainer, _, _ = by_hand(thought_mask_share=share)
    torch.manual_seed(0)
    ids = torch.full((100, 400), STEP)
    thought = torch.zeros_like(ids, dtype=torch.bool)
    thought[:, 100:] = True
    masked = trainer._masked_thoughts(ids, thought) != STEP
    assert not masked[:, :100].any()
    # 30,000 tokens: a standard deviation of at most 0.003.
    assert masked[:, 100:].float().mean().item() == pytest.approx(share, abs=0.015)


def test_the_parts_of_a_batch_are_divided_by_the_tokens_of_the_whole_batch(by_hand):
    trainer, batch, model = by_hand()
    # This micro-batch has 2 of 4 tokens of thought and 2 of 8 tokens of answer.
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor([4, 8]))
    assert loss.item() == pytest.approx(math.log(8 / 3) / 4 + math.log(16 / 7) / 8, rel=1e-6)


def test_both_parts_are_counted_over_all_micro_batches(make_trainer, tiny_policy, tokenizer):
    trainer = make_trainer(tiny_policy, per_device_train_batch_size=2)
    batches = list(trainer.get_train_dataloader())
    counts = trainer.count_items(batches, torch.device("cpu"))
    thoughts = [len(tokenizer.encode(p.thought)) + 1 for p in PROBLEMS]
    answers = [len(tokenizer.encode(p.answer)) + 1 for p in PROBLEMS]
    assert counts.tolist() == [sum(thoughts), sum(answers)]


def test_cross_entropy_is_zero_without_a_label():
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0))
    ce = token_cross_entropy(logits, torch.tensor([[-100, 5, -100, 6]]))
    logprobs = torch.log_softmax(logits, dim=-1)
    # The label of position 1 is predicted at position 0, that of 3 at 2.
    torch.testing.assert_close(ce[0, [1, 3]], -logprobs[0, [0, 2], [5, 6]])
    assert ce[0, [0, 2]].tolist() == [0.0, 0.0]


# ---- batching changes nothing ----


# Trainer divides the loss of a model whose forward has no **kwargs, unless it is told not to.
@pytest.mark.parametrize("takes_kwargs", [True, False])
def test_gradient_accumulation_changes_nothing(make_trainer, tiny_policy, takes_kwargs):
    trained = []
    for micro in (8, 2):
        model = copy.deepcopy(tiny_policy)
        trainer = make_trainer(
            model,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
            num_train_epochs=2,
        )
        trainer.model_accepts_loss_kwargs = takes_kwargs
        trainer.train()
        trained.append(weights(model))
    assert (trained[0] - weights(tiny_policy)).abs().max() > 1e-3
    torch.testing.assert_close(trained[0], trained[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_micro_batches_of_so_many_tokens_change_nothing(make_trainer, tiny_policy, accumulated):
    trained = []
    for tokens in (None, 60):
        model = copy.deepcopy(tiny_policy)
        trainer = make_trainer(
            model,
            micro_batch_tokens=tokens,
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=2,
        )
        parts = []
        compute_loss = trainer.compute_loss

        def counted(*args, compute_loss=compute_loss, parts=parts, **named):
            parts.append(1)
            return compute_loss(*args, **named)

        trainer.compute_loss = counted
        trainer.train()
        trained.append((weights(model), len(parts)))
    (whole, steps), (cut, forwards) = trained
    assert steps == 2 * accumulated and forwards > steps
    assert (whole - weights(tiny_policy)).abs().max() > 1e-3
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


def test_a_part_has_so_many_tokens_with_its_padding_and_every_row_is_in_one(
    make_trainer, tiny_policy
):
    trainer = make_trainer(tiny_policy, micro_batch_tokens=60)
    batch = batch_of(trainer)
    parts = trainer.micro_batches(batch)
    shapes = [part["input_ids"].shape for part in parts]
    assert len(parts) > 1 and all(rows * width <= 60 or rows == 1 for rows, width in shapes)
    assert all(part["attention_mask"].any(dim=0).all() for part in parts)
    rows = [
        (ids[mask].tolist(), labels[mask].tolist())
        for part in parts
        for ids, mask, labels in zip(
            part["input_ids"], part["attention_mask"].bool(), part["labels"], strict=True
        )
    ]
    mask_BT = batch["attention_mask"].bool()
    columns = zip(batch["input_ids"], mask_BT, batch["labels"], strict=True)
    assert sorted(rows) == sorted((i[m].tolist(), y[m].tolist()) for i, m, y in columns)


def test_packed_examples_have_the_loss_of_padded_ones(make_trainer, tiny_policy):
    losses = {}
    for packing in (False, True):
        trainer = make_trainer(tiny_policy, packing=packing, per_device_train_batch_size=8)
        batch = batch_of(trainer)
        losses[packing] = trainer.compute_loss(tiny_policy, batch).item()
        counts = trainer.count_items([batch], torch.device("cpu")).tolist()
        losses[packing, "tokens"] = counts
    assert losses[True, "tokens"] == losses[False, "tokens"]
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)


def test_packing_trains(make_trainer, tiny_policy):
    before = weights(tiny_policy)
    trainer = make_trainer(tiny_policy, packing=True, max_steps=2)
    trainer.train()
    assert not torch.equal(weights(tiny_policy), before)
    assert trainer.state.log_history[1]["loss"] < trainer.state.log_history[0]["loss"]


# ---- the run ----


def test_nano_overfits_its_examples(make_trainer, tiny_policy):
    trainer = make_trainer(
        tiny_policy,
        max_steps=40,
        learning_rate=2e-2,
        muon=True,
        optim=ReasoningSFTConfig.optim,
        logging_steps=40,
    )
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    last = trainer.state.log_history[-1]
    assert last["eval_loss/thought"] < 0.2
    assert last["eval_loss/answer"] < 0.2
    assert last["eval_loss"] == pytest.approx(
        last["eval_loss/thought"] + last["eval_loss/answer"], abs=1e-5
    )
    assert last["eval_token_accuracy"] > 0.9


def test_batches_of_like_length_come_in_a_new_order_each_epoch(make_trainer, tiny_policy):
    trainer = make_trainer(
        tiny_policy,
        train_sampling_strategy="group_by_length",
        per_device_train_batch_size=2,
        num_train_epochs=2,
    )
    assert isinstance(trainer.train_sampler(), BucketSampler)
    seen = []
    tiny_policy.register_forward_pre_hook(
        lambda model, args, inputs: seen.append(inputs["input_ids"].sum().item()), with_kwargs=True
    )
    trainer.train()
    assert len(seen) == 8
    assert seen[:4] != seen[4:]


@pytest.mark.parametrize(
    "options", [{}, {"muon": True, "train_sampling_strategy": "group_by_length"}]
)
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    make_trainer, tiny_policy, tmp_path, options
):
    options = {
        **options,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "optim": ReasoningSFTConfig.optim,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    resumed = copy.deepcopy(tiny_policy)
    make_trainer(tiny_policy, **options).train()
    make_trainer(resumed, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(weights(resumed), weights(tiny_policy), atol=1e-6, rtol=0)


def test_a_model_from_the_hub_trains_after_its_vocabulary_was_extended(
    make_model, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer(pad="eos")
    model = make_model("gpt2", vocab_size=len(tokenizer))
    add_reasoning_tokens(model, tokenizer)
    dataset, _ = sft_dataset(tokenizer, PROBLEMS, progress=False)
    args = ReasoningSFTConfig(
        output_dir=str(tmp_path), max_steps=1, save_strategy="no", disable_tqdm=True
    )
    trainer = ReasoningSFTTrainer(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer
    )
    batch = batch_of(trainer)
    for labels in batch["labels"]:
        # The end token is trained, although padding was made of it before the tokens were added.
        assert labels[labels != -100][-1] == tokenizer.eos_token_id
    trainer.train()


def test_a_value_head_is_not_trained(make_trainer, tiny_policy):
    before = tiny_policy.value_head.last.weight.clone()
    make_trainer(tiny_policy, max_steps=1, weight_decay=0.1).train()
    assert torch.equal(tiny_policy.value_head.last.weight, before)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thought_weight": -1.0}, "thought_weight=-1.0 must be at least 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1"),
        ({"trust_remote_code": True}, "would run code of the model's repository"),
        ({"thought_weight": 0, "answer_weight": 0}, "leave nothing to train on"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"learning_rate": "fast"}, "learning_rate='fast' must be a number"),
        ({"max_steps": 2.5}, "max_steps=2.5 must be a whole number"),
        ({"muon": "perhaps"}, "muon='perhaps' must be true or false"),
        ({"micro_batch_tokens": 9, "packing": True}, "micro_batch_tokens=9 cuts a batch between"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(tmp_path: Path, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ReasoningSFTConfig(output_dir=str(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_a_rate_that_yaml_reads_as_text_is_a_number(tmp_path):
    assert ReasoningSFTConfig(output_dir=str(tmp_path), learning_rate="4e-3").learning_rate == 4e-3
