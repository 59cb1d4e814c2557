"""The reasoning layer: which head speaks, in training, scoring and decoding, and its one file."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from eval import run as eval_run
from eval.harness import __main__ as harness
from pipeline.chat.tags import END_THINK, THINK
from pipeline.data.sft_examples import sft_dataset
from pipeline.generation import Sampler
from pipeline.generation.continuous import ContinuousBatch
from pipeline.generation.decode_row import DecodeRow
from pipeline.generation.shared_prefix import DecodeRequest, PrefixEngine
from pipeline.model import (
    REASONING_FILE,
    add_reasoning_tokens,
    all_heads,
    attach_reasoning_layer,
    attach_value_head,
    has_reasoning_layer,
    load_policy,
    new_reasoning_layer,
    save_policy,
)
from pipeline.records import Problem
from pipeline.scoring import score_completions, supports_packing
from pipeline.search import STRATEGIES, SearchOptions
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from stages import infer, sft

FAMILIES = ("llama", "qwen3")
PROBLEMS = [
    Problem(question=f"What is {a} + {b}?", answer=str(a + b), thought=f"{a}+{b}={a + b}")
    for a, b in [(2, 3), (12, 7), (5, 50), (9, 1)]
]


def with_layer(model, tokenizer, *, tied=False, trained=True):
    think_id, end_think_id = tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    layer = new_reasoning_layer(model, think_id=think_id, end_think_id=end_think_id, tied=tied)
    if trained:  # a new one is the identity, and every comparison would hold
        torch.manual_seed(1)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return attach_reasoning_layer(model, layer)


@pytest.fixture
def ids(tokenizer):
    think_id, end_think_id = tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    return torch.tensor([[30, 31, think_id, 40, 41, end_think_id, 50, 51]])


@pytest.fixture
def reasoner(policy, tokenizer):
    return with_layer(policy, tokenizer)


@pytest.fixture
def prompts(tokenizer):
    texts = ["What is 12 + 7?", "How many?", "A train goes 60 miles in 2 hours."]
    opening = tokenizer.convert_tokens_to_ids(THINK)
    closing = tokenizer.convert_tokens_to_ids(END_THINK)
    rows = [[*tokenizer.encode(text), opening] for text in texts]
    return [*rows, [*tokenizer.encode("Say it."), opening, closing]]  # no thought to write


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_layer_changes_no_logit(family, tied, make_model, tokenizer, ids):
    model = make_model(family, vocab_size=320, tie=True)
    with torch.no_grad():
        before = model(ids).logits
        with_layer(model, tokenizer, tied=tied, trained=False)
        heads = all_heads(model, ids)
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(heads.reasoning_logits, before)
    assert torch.equal(heads.completion_logits, before)


def test_the_thought_comes_from_the_reasoning_head_and_the_answer_from_the_other(
    tiny_policy, tokenizer, ids
):
    with torch.no_grad():
        plain = tiny_policy(ids).logits
        model = with_layer(tiny_policy, tokenizer)
        routed, heads = model(ids).logits[0], all_heads(model, ids)
    reasoning, completion = heads.reasoning_logits[0], heads.completion_logits[0]
    assert torch.equal(completion, plain[0])
    # <think> is at 2 and </think> at 5: positions 2 to 4 predict the thought with its closing tag.
    for t in range(8):
        expected = reasoning[t] if 2 <= t <= 4 else completion[t]
        assert torch.equal(routed[t], expected), t
    assert not torch.allclose(reasoning, completion, atol=0.1)
    assert heads.values.shape == ids.shape


def test_the_reasoning_head_reads_the_extra_layer(tiny_policy, tokenizer, ids):
    model = with_layer(tiny_policy, tokenizer)
    states = []
    model.model.norm.register_forward_pre_hook(lambda m, args: states.append(args[0]))
    with torch.no_grad():
        heads = all_heads(model, ids)
        layer = model.reasoning_layer
        rope = model.model.rotary_emb(states[0], torch.arange(8).unsqueeze(0))
        hidden = layer.layer(states[0], position_embeddings=rope, attention_mask=None)
        expected = layer.head(layer.norm(hidden))
    torch.testing.assert_close(heads.reasoning_logits, expected, rtol=1e-4, atol=1e-5)


def test_logits_to_keep_keeps_the_last_ones(tiny_policy, tokenizer, ids):
    model = with_layer(tiny_policy, tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, logits_to_keep=5).logits, model(ids).logits[:, -5:])


def test_both_losses_have_their_own_head(tiny_policy, tokenizer, tmp_path):
    def gradients(thought_weight, answer_weight):
        model = copy.deepcopy(with_layer(tiny_policy, tokenizer))
        args = ReasoningSFTConfig(
            output_dir=str(tmp_path),
            thought_weight=thought_weight,
            answer_weight=answer_weight,
            max_length=128,
        )
        rows: Dataset = sft_dataset(tokenizer, PROBLEMS, progress=False)[0]
        trainer = ReasoningSFTTrainer(
            model=model, args=args, train_dataset=rows, processing_class=tokenizer
        )
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.compute_loss(model, batch).backward()
        head = model.reasoning_layer.head.weight.grad
        return head, [p.grad for p in model.reasoning_layer.layer.parameters()]

    head, layer = gradients(1.0, 0.0)
    assert head.abs().max() > 0
    assert all(grad.abs().max() > 0 for grad in layer)
    head, layer = gradients(0.0, 1.0)
    assert head.abs().max() == 0
    assert all(grad.abs().max() == 0 for grad in layer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scored_log_probabilities_equal_the_sampled_ones(reasoner, tokenizer, prompts, temperature):
    assert not supports_packing(reasoner)
    sampler = Sampler(reasoner, tokenizer, temperature=temperature, max_new_tokens=24, batch_size=5)
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    bias = torch.zeros(reasoner.config.vocab_size)
    bias[end_think_id] = 3.0
    reasoner.reasoning_layer.head.register_forward_hook(lambda m, args, output: output + bias)
    rollout = sampler.sample(prompts, group=3)
    with torch.no_grad():
        scores = score_completions(
            reasoner,
            rollout.prompt_ids_BP,
            rollout.mask_prompt_BP,
            rollout.completion_ids_BC,
            rollout.mask_completion_BC,
        )
    mask = rollout.mask_completion_BC
    if temperature:  # thoughts close inside a completion: both heads have spoken
        closed = ((rollout.completion_ids_BC == end_think_id) & mask).any(dim=1)
        assert closed[:9].any()
    torch.testing.assert_close(
        scores.logprobs_BC[mask], rollout.logprobs_BC[mask], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        scores.values_BC[mask], rollout.values_BC[mask], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("strategy", ["greedy", "consensus", "mcts", "beam"])
def test_every_search_decodes_what_the_model_scores(reasoner, tokenizer, strategy, monkeypatch):
    sequences, prompts = [], []
    own_sequence, own_start = DecodeRow.sequence, PrefixEngine.start

    def keep_sequence(row):
        sequences.append(own_sequence(row))
        return sequences[-1]

    def keep_prompt(engine, given, *, closed=False):
        prompts.append(list(given[0]))
        return own_start(engine, given, closed=closed)

    monkeypatch.setattr(DecodeRow, "sequence", keep_sequence)
    monkeypatch.setattr(PrefixEngine, "start", keep_prompt)
    n = 1 if strategy == "greedy" else 3
    options = SearchOptions(n=n, max_sample_tokens=24, max_completion_tokens=200)
    STRATEGIES[strategy](reasoner, tokenizer, ["What is 12 + 7?"], options)
    assert sequences
    for sequence in sequences[:40]:
        ids = torch.tensor([[*prompts[0], *sequence.ids]])
        with torch.no_grad():
            logprobs = reasoner(ids).logits[0].log_softmax(dim=-1)
        first = len(prompts[0])
        expected = logprobs[first - 1 : -1].gather(1, ids[0, first:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sequence.logprobs), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_server_s_batch_decodes_what_a_row_alone_does(reasoner, tokenizer, prompts):
    engine = PrefixEngine(reasoner, tokenizer)

    def requests():
        roots = engine.start(prompts[:3])
        return [
            DecodeRequest(sequence=root, budget=9 + 4 * i, stream=(i,), temperature=1.0)
            for i, root in enumerate(roots)
        ]

    wanted = engine.extend(requests())
    rows = [DecodeRow(request, engine) for request in requests()]
    batch = ContinuousBatch(reasoner)
    for step in range(30):
        batch.add([(row, engine) for i, row in enumerate(rows) if 3 * i == step])
        if batch.rows:
            batch.step()
    for row, alone in zip(rows, wanted, strict=True):
        assert row.sequence().ids == alone.ids
        assert row.sequence().logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_the_stages_train_answer_and_evaluate_with_the_layer(tmp_path, capsys):
    sizes = "nano_hidden_size=32 nano_layers=1 nano_heads=2 nano_intermediate_size=64"
    options = f"{sizes} nano_vocab_size=300 shares=wording=1 size=32 max_steps=2 max_length=256"
    pairs = [x.split("=", 1) for x in f"{options} reasoning_layer=true disable_tqdm=true".split()]
    folder = tmp_path / "sft"
    arguments = [x for name, value in pairs for x in (f"--{name}", value)]
    sft.main([*arguments, "--output_dir", str(folder), "--save_strategy", "no"])
    assert (folder / REASONING_FILE).is_file()
    start = ["--checkpoint", str(folder)]
    infer.main([*start, "--question", "What is 1 + 2?", "--max_completion_tokens", "40"])
    assert capsys.readouterr().out
    for strategy, n in (("greedy", "1"), ("consensus", "2")):
        out = tmp_path / strategy
        suite = ["--suite", "nano", "--limit", "3", "--strategy", strategy, "--n", n]
        eval_run.main([*start, *suite, "--max_sample_tokens", "30", "--output_dir", str(out)])
        assert len((out / "records.jsonl").read_text().splitlines()) == 3
    with pytest.raises(SystemExit):
        harness.main([*start, "--suites", "nano", "--only_tasks", "true", "--output_dir", "o"])
    assert "evaluate it with eval.run" in capsys.readouterr().err


def test_a_checkpoint_comes_back_and_transformers_reads_it_without_the_layer(
    reasoner, tokenizer, ids, tmp_path
):
    attach_value_head(reasoner)
    reasoner.lm_head._forward_hooks.clear()  # the bias of the fixture is no weight
    attach_reasoning_layer(reasoner, reasoner.reasoning_layer)
    save_policy(reasoner, tokenizer, tmp_path)
    loaded, _ = load_policy(tmp_path)
    with torch.no_grad():
        heads, again = all_heads(reasoner, ids), all_heads(loaded, ids)
        for a, b in zip(heads, again, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(reasoner(ids).logits, loaded(ids).logits)
        plain, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert torch.equal(plain(ids).logits, heads.completion_logits)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert len(list(tmp_path.glob("reasoning_layer*"))) == 1


def test_a_tied_head_is_not_stored(tiny_policy, tokenizer, ids, tmp_path):
    model = with_layer(tiny_policy, tokenizer, tied=True)
    save_policy(model, tokenizer, tmp_path)
    loaded, _ = load_policy(tmp_path)
    assert loaded.reasoning_layer.head is None
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_file_of_another_model_is_refused(tiny_policy, make_model, tokenizer, tmp_path):
    save_policy(with_layer(tiny_policy, tokenizer), tokenizer, tmp_path / "a")
    other = make_model("qwen3", vocab_size=320)
    save_policy(attach_value_head(other), tokenizer, tmp_path / "b")
    (tmp_path / "b" / REASONING_FILE).write_bytes((tmp_path / "a" / REASONING_FILE).read_bytes())
    with pytest.raises(ValueError, match="take the file that was saved with this model"):
        load_policy(tmp_path / "b")


def test_sft_trains_and_resumes_with_the_layer(tiny_policy, tokenizer, tmp_path):
    rows = sft_dataset(tokenizer, PROBLEMS, progress=False)[0]

    def trained(folder, **options):
        args = ReasoningSFTConfig(
            output_dir=str(tmp_path / folder),
            reasoning_layer=True,
            muon=True,
            max_steps=4,
            per_device_train_batch_size=2,
            save_steps=2,
            max_length=128,
            disable_tqdm=True,
            learning_rate=1e-2,
        )
        trainer = ReasoningSFTTrainer(
            model=copy.deepcopy(tiny_policy),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
        )
        trainer.train(**options)
        return trainer.model

    once = trained("once")
    assert once.reasoning_layer.layer.self_attn.o_proj.weight.abs().max() > 0
    again = trained("once", resume_from_checkpoint=str(tmp_path / "once" / "checkpoint-2"))
    for (name, a), (_, b) in zip(once.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_ppo_takes_a_step_and_its_reference_has_the_layer(reasoner, make_ppo, tokenizer, tmp_path):
    reasoner.lm_head._forward_hooks.clear()  # the bias of the fixture is no weight
    attach_reasoning_layer(attach_value_head(reasoner), reasoner.reasoning_layer)
    save_policy(reasoner, tokenizer, tmp_path / "start")
    model, _ = load_policy(tmp_path / "start")
    before = model.reasoning_layer.head.weight.detach().clone()
    reward = lambda completions, **_: [float(len(c[0]["content"])) for c in completions]  # noqa: E731
    trainer = make_ppo(model, reward, kl_coef=0.1)
    reference = trainer.ref_model
    assert has_reasoning_layer(reference)
    assert torch.equal(reference.reasoning_layer.head.weight, before)
    trainer.train()
    assert not torch.equal(model.reasoning_layer.head.weight, before)
    assert torch.equal(reference.reasoning_layer.head.weight, before)


def test_adapters_and_other_architectures_are_refused(tiny_policy, make_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="leave one of them out"):
        ReasoningSFTTrainer(
            model=tiny_policy,
            args=ReasoningSFTConfig(output_dir=str(tmp_path), reasoning_layer=True),
            train_dataset=sft_dataset(tokenizer, PROBLEMS, progress=False)[0],
            processing_class=tokenizer,
            peft_config=LoraConfig(target_modules="all-linear"),
        )
    for family in ("gpt2", "gpt_neox", "opt"):
        model = make_model(family, vocab_size=320)
        with pytest.raises(ValueError, match="leave reasoning_layer out"):
            with_layer(model, tokenizer)


def test_new_rows_of_the_vocabulary_are_refused(tiny_policy, tokenizer):
    model = with_layer(tiny_policy, tokenizer)
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens([f"<new{i}>" for i in range(40)])
    with pytest.raises(ValueError, match="take the tokenizer and the model that were saved"):
        add_reasoning_tokens(model, grown)
