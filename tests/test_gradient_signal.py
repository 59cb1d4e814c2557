"""The benchmark `signal`: advantages, gradients and figures of tiny policies."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.bench import __main__ as bench
from eval.bench.estimators import (
    ESTIMATORS,
    Estimator,
    Sampling,
    estimator_batch,
    recipe_estimator,
)
from eval.bench.gradient_signal import changed_options, measure
from eval.bench.policy_gradients import (
    Sketch,
    flat_gradient,
    make_sketch,
    policy_gradients,
    supervised_gradients,
    trained_parameters,
)
from eval.bench.signal_figures import (
    batch_figures,
    batch_table,
    noise_of,
    noise_table,
    suggested_rollout,
)
from eval.bench.signal_options import SignalConfig, read_problems
from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import save_policy
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.rollout import rollout_of_ids
from pipeline.ppo.supervised import SupervisedPart
from pipeline.records import Problem, Rollout
from pipeline.scoring import score_completions

PROBLEMS = [
    Problem(question="What is 3 + 4, times 2?", answer="14", thought="3+4=7\n7*2=14"),
    Problem(question="What is 5 + 1, times 3?", answer="18", thought="5+1=6\n6*3=18"),
    Problem(question="What is 2 + 2, times 5?", answer="20", thought="2+2=4\n4*5=20"),
]
# Of each question: a right completion and one whose second step is false.
TEXTS = [
    "3+4=7\n7*2=14</think>14",
    "3+4=7\n7*2=15</think>15",
    "5+1=6\n6*3=18</think>18",
    "5+1=6\n6*3=17</think>17",
    "2+2=4\n4*5=20</think>20",
    "2+2=4\n4*5=25</think>25",
]


def rollout_of(texts, problems, tokenizer) -> Rollout:
    """The texts as completions with an end token, each question's side by side; V is 0."""
    group = len(texts) // len(problems)
    prompts = encode_prompts(tokenizer, [p.prompt for p in problems for _ in range(group)])
    ids = [
        [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in texts
    ]
    return rollout_of_ids(prompts, ids, tokenizer.pad_token_id, [tokenizer.eos_token_id])


@pytest.fixture(scope="module")
def rollout(tokenizer) -> Rollout:
    return rollout_of(TEXTS, PROBLEMS, tokenizer)


def batch_of(name, rollout, tokenizer, problems=PROBLEMS):
    estimator = ESTIMATORS[name] if isinstance(name, str) else name
    return estimator_batch(estimator, rollout, problems, tokenizer, [tokenizer.eos_token_id])


def gradients_of(model, rollout, tokenizer, names, **options):
    batches = {name: batch_of(name, rollout, tokenizer)[0] for name in names}
    given = {"count": 3, "micro_batch_size": 4, "temperature": 1.0, **options}
    return batches, *policy_gradients(model, rollout, batches, **given)


# ---- advantages ----


def test_rloo_without_normalization_subtracts_the_mean_of_the_others(rollout, tokenizer):
    batch, metrics = batch_of("rloo_plain", rollout, tokenizer)
    mask_BC = rollout.mask_completion_BC
    expected_B1 = torch.tensor([1.0, -1.0] * 3).unsqueeze(1)  # 1 - 0 and 0 - 1
    torch.testing.assert_close(batch["advantages"], expected_B1 * mask_BC)
    assert metrics["mean_reward"] == 0.5 and metrics["groups/zero_variance"] == 0.0


def test_steps_alone_credit_the_tokens_of_the_false_step(rollout, tokenizer):
    batch, metrics = batch_of("steps_plain", rollout, tokenizer)
    found = {}
    for b in (0, 1):
        ids = rollout.completion_ids_BC[b]
        parts = {1: [], 0.5: [], 0: [], -1: []}
        for token, advantage in zip(ids.tolist(), batch["advantages"][b].tolist(), strict=True):
            parts[advantage].append(token)
        found[b] = {a: tokenizer.decode(tokens).strip("\n") for a, tokens in parts.items()}
    assert found[0][0.5] == "3+4=7\n7*2=14" and not found[0][-1]
    assert found[1][-1] == "7*2=15" and not found[1][0.5]
    assert found[1][0].startswith("3+4=7</think>15")
    assert metrics["mean_reward"] == 0.0


def test_questions_without_variance_are_left_out_where_the_options_say_so(tokenizer):
    rollout = rollout_of(TEXTS[:1] * 2 + TEXTS[2:], PROBLEMS, tokenizer)
    options = replace(ESTIMATORS["rloo_plain"].options, zero_variance_groups="resample")
    skipping = Estimator({"correctness": 1.0}, options)
    kept, metrics = batch_of("rloo_plain", rollout, tokenizer)
    skipped, _ = batch_of(skipping, rollout, tokenizer)
    assert metrics["groups/zero_variance"] == pytest.approx(1 / 3)
    assert kept["completion_mask"][:2].any() and not skipped["completion_mask"][:2].any()
    assert torch.equal(kept["completion_mask"][2:], skipped["completion_mask"][2:])


def test_the_estimator_of_a_recipe_has_its_rewards_and_options():
    found = recipe_estimator("configs/nano/ppo.yaml")
    assert found.rewards["steps"] == 0.3 and found.rewards["correctness"] == 1.0
    assert changed_options(found.options) == {"lam": 1.0, "rloo_baseline": True}


def test_an_estimator_of_few_tokens_has_the_gradient_of_those_alone(
    tiny_policy, rollout, tokenizer
):
    sampling = Sampling(tiny_policy, tokenizer, 1.0, max_completion_length=24, seed=0)
    eos = [tokenizer.eos_token_id]
    batch, metrics = estimator_batch(
        ESTIMATORS["rloo_entropy"], rollout, PROBLEMS, tokenizer, eos, sampling
    )
    assert metrics["policy_tokens"] == pytest.approx(0.2, abs=0.02)
    found, _ = policy_gradients(
        tiny_policy, rollout, {"few": batch}, count=3, micro_batch_size=4, temperature=1.0
    )
    masked = {name: x for name, x in batch.items() if name != "policy_mask"}
    masked["advantages"] = batch["advantages"] * batch["policy_mask"]
    same, _ = policy_gradients(
        tiny_policy, rollout, {"few": masked}, count=3, micro_batch_size=4, temperature=1.0
    )
    torch.testing.assert_close(found["few"], same["few"])


def test_vine_and_verifier_make_batches_of_the_same_samples(tiny_policy, rollout, tokenizer):
    sampling = Sampling(tiny_policy, tokenizer, 1.0, max_completion_length=24, seed=0)
    for name in ("vine_plain", "verifier"):
        batch, metrics = estimator_batch(
            ESTIMATORS[name], rollout, PROBLEMS, tokenizer, [tokenizer.eos_token_id], sampling
        )
        assert torch.equal(batch["completion_ids"], rollout.completion_ids_BC)
        assert metrics["mean_reward"] == 0.5 and batch["advantages"].any()
    asked = [encode_prompts(tokenizer, ["2+3?"])[0]], [4], 2, 7
    assert sampling.go_on(*asked) is sampling.go_on(*asked)  # sampled once
    assert sampling.go_on(*asked) is not sampling.go_on(*asked[:3], 8)
    assert changed_options(ESTIMATORS["vine_plain"].options) == {
        "lam": 1.0,
        "step_lam": 0.0,
        "normalize_advantages": "none",
        "value_source": "monte_carlo",
    }


# ---- gradients ----


def test_the_mean_of_the_parts_is_the_gradient_of_the_whole_rollout(
    tiny_policy, rollout, tokenizer
):
    batches, found, entropy = gradients_of(tiny_policy, rollout, tokenizer, ["rloo", "gae"])
    scores = score_completions(
        tiny_policy,
        rollout.prompt_ids_BP,
        rollout.mask_prompt_BP,
        rollout.completion_ids_BC,
        rollout.mask_completion_BC,
    )
    tokens = rollout.mask_completion_BC.sum()
    for name, batch in batches.items():
        loss = -(batch["advantages"] * scores.logprobs_BC).sum() / tokens
        whole_D = flat_gradient(loss, trained_parameters(tiny_policy), keep=True)
        assert found[name].shape == (3, len(whole_D)) and whole_D.norm() > 1e-3
        torch.testing.assert_close(found[name].mean(dim=0), whole_D, rtol=1e-3, atol=1e-6)
    assert entropy == pytest.approx(scores.entropy_BC.sum().item() / tokens.item(), rel=1e-4)


def test_each_part_is_the_gradient_of_its_own_questions(tiny_policy, rollout, tokenizer):
    _, found, _ = gradients_of(tiny_policy, rollout, tokenizer, ["rloo_plain"])
    rows = {name: x[2:4] for name, x in vars(rollout).items()}
    part = Rollout(**rows)
    _, alone, _ = gradients_of_part(tiny_policy, part, tokenizer)
    # Tokens are counted over the whole rollout, a third of them a part.
    scale = 3 * part.mask_completion_BC.sum() / rollout.mask_completion_BC.sum()
    torch.testing.assert_close(
        found["rloo_plain"][1], alone["rloo_plain"][0] * scale, rtol=1e-3, atol=1e-6
    )


def gradients_of_part(model, part, tokenizer):
    batch = batch_of("rloo_plain", part, tokenizer, PROBLEMS[1:2])[0]
    found = policy_gradients(
        model, part, {"rloo_plain": batch}, count=1, micro_batch_size=4, temperature=1.0
    )
    return batch, *found


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_the_micro_batch_size_changes_no_gradient(
    tiny_policy, rollout, tokenizer, micro_batch_size
):
    _, one, _ = gradients_of(tiny_policy, rollout, tokenizer, ["rloo"])
    _, other, _ = gradients_of(
        tiny_policy, rollout, tokenizer, ["rloo"], micro_batch_size=micro_batch_size
    )
    torch.testing.assert_close(one["rloo"], other["rloo"], rtol=1e-3, atol=1e-6)


def test_the_sft_gradient_is_that_of_thought_and_answer(tiny_policy, tokenizer):
    rows, _ = sft_dataset(tokenizer, PROBLEMS, progress=False)
    end_id = tokenizer.convert_tokens_to_ids(END_THINK)
    part = SupervisedPart(rows, batch_size=1, end_think_id=end_id, seed=0)
    found_NK = supervised_gradients(tiny_policy, part, 2)
    ids_BT, mask_BT = part.batch(1)
    logprobs_T = tiny_policy(input_ids=ids_BT)["logits"].log_softmax(-1)[0, :-1]
    ce_T = -logprobs_T.gather(1, ids_BT[0, 1:, None])[:, 0]
    trained_T = mask_BT[0, 1:]
    end = int((ids_BT[0, 1:] == end_id).nonzero()[-1])
    thought_T = trained_T & (torch.arange(len(trained_T)) <= end)
    by_hand = ce_T[thought_T].mean() + ce_T[trained_T & ~thought_T].mean()
    by_hand_D = flat_gradient(by_hand, trained_parameters(tiny_policy))
    torch.testing.assert_close(found_NK[1], by_hand_D, rtol=1e-3, atol=1e-5)


def test_a_small_gradient_is_kept_and_a_large_one_keeps_its_inner_products():
    weights = [torch.nn.Parameter(torch.zeros(30, 1000))]
    exact, sketch = make_sketch(weights, 30_000), make_sketch(weights, 3_000)
    generator = torch.Generator().manual_seed(0)
    one_D, other_D = torch.randn(2, 30_000, generator=generator)
    mixed_D = one_D + other_D  # cosine sqrt(1 / 2) with either
    assert torch.equal(exact(one_D), one_D) and sketch(one_D).shape == (3_000,)
    cosine = torch.cosine_similarity(sketch(one_D), sketch(mixed_D), dim=0)
    assert cosine.item() == pytest.approx(math.sqrt(0.5), abs=0.06)
    torch.testing.assert_close(sketch(one_D) + sketch(other_D), sketch(mixed_D), atol=1e-4, rtol=0)


def test_a_sketch_adds_parameters_with_their_signs():
    sketch = Sketch(torch.tensor([1, -1, 1, -1, -1], dtype=torch.int8), 2)
    # Components: 1 + 3 - 5, and -2 - 4.
    assert sketch(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).tolist() == [-1.0, -6.0]


# ---- figures ----


def test_the_figures_of_a_batch_size_are_those_of_means_of_gradients():
    rng = np.random.default_rng(0)
    gradients_NK = torch.from_numpy(rng.normal(size=(8, 50)) + 1.0)
    sft_MK = torch.from_numpy(rng.normal(size=(4, 50)) + 1.0)
    noise = noise_of(gradients_NK, 16)
    direction, found = batch_figures(gradients_NK, sft_MK, noise, sizes=[2, 4], group=8)
    assert [(x.questions, x.samples, x.batches) for x in found] == [(2, 16, 8), (4, 32, 4)]
    means = gradients_NK.view(4, 2, 50).mean(dim=1)
    pairs = [torch.cosine_similarity(means[i], means[j], dim=0) for i in range(4) for j in range(i)]
    assert found[1].cosine.mean == pytest.approx(float(sum(pairs) / 6))
    with_sft = torch.cosine_similarity(means, sft_MK.mean(dim=0), dim=1).mean()
    assert found[1].cosine_with_sft == pytest.approx(float(with_sft))
    assert direction.low < 1.0 == direction.high  # clipped: a cosine is at most 1
    assert found[1].step_share == pytest.approx(32 / (32 + noise.noise_scale.mean))


def test_a_policy_is_measured_with_every_estimator(tiny_policy, tokenizer, monkeypatch):
    """The samples are given: a tiny policy answers nothing right."""
    monkeypatch.setattr(
        "eval.bench.gradient_signal.Sampler.sample",
        lambda self, prompts, group: rollout_of(TEXTS, PROBLEMS, tokenizer),
    )
    config = SignalConfig(
        checkpoint="-",
        questions=3,
        max_completion_length=40,  # of those that value_source=monte_carlo samples
        completions_per_question=2,
        batch_sizes="1",
        worked_solutions=3,
        supervised_batch_size=1,
    )
    figures = measure(tiny_policy, tokenizer, config, ESTIMATORS, PROBLEMS, PROBLEMS)
    assert list(figures.estimators) == list(ESTIMATORS) and figures.completions == 6
    assert all(found.noise.trace > 0 for found in figures.estimators.values())
    assert figures.estimators["gae"].mean_reward == 0.5
    tables = noise_table(figures), batch_table(figures)
    assert [table.count("\n") for table in tables] == [
        1 + len(ESTIMATORS) + 1,
        1 + len(ESTIMATORS),
    ]
    scales = {name: found.noise.noise_scale.mean for name, found in figures.estimators.items()}
    least = min(scales, key=scales.get)
    questions = math.ceil(scales[least] / 2)
    said = suggested_rollout(figures, 2)
    assert said.startswith(f"least noise: {least};")
    assert f"a rollout of {questions:,} questions x 2" in said
    silent = noise_of(torch.zeros(3, 4), 2)
    alone = replace(figures.estimators["gae"], noise=silent)
    said = suggested_rollout(replace(figures, estimators={"gae": alone}), 2)
    assert said.startswith("no estimator has a signal")


# ---- the command ----


@pytest.fixture(scope="module")
def checkpoint(_tiny_policy, tokenizer, tmp_path_factory):
    """The tiny policy with V = 0, as a new value head has it."""
    folder = tmp_path_factory.mktemp("signal") / "sft"
    policy = copy.deepcopy(_tiny_policy)
    torch.nn.init.zeros_(policy.value_head.last.weight)
    save_policy(policy, tokenizer, folder)
    return folder


def test_the_command_prints_tables_and_writes_json(checkpoint, tmp_path, capsys):
    path = tmp_path / "signal.json"
    call = f"signal --checkpoint {checkpoint} --shares wording=1 --questions 4 --batch_sizes 1,2"
    call += " --completions_per_question 2 --max_completion_length 8 --estimators rloo,steps_plain"
    call += " --worked_solutions 6 --supervised_batch_size 2"
    bench.main([*call.split(), "--output", str(path)])
    said = capsys.readouterr().out
    assert "| steps_plain | 4 | 2 |" in said and str(path) in said
    written = json.loads(path.read_text())
    assert written["arguments"]["questions"] == 4
    found = written["figures"]["estimators"]
    assert list(found) == ["rloo", "steps_plain"]
    # Without a right completion answers give no gradient, and JSON has no NaN or infinity.
    assert found["rloo"]["noise"]["noise_scale"]["mean"] is None
    assert found["rloo"]["zero_variance"] == 1.0 and found["steps_plain"]["noise"]["trace"] > 0
    assert [batch["samples"] for batch in found["steps_plain"]["batches"]] == [2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--checkpoint is missing"),
        ("--checkpoint x --batch_sizes 16,24", "has 24, which must be a multiple of the first"),
        ("--checkpoint x --batch_sizes 16,256", "at most half of questions=384"),
        ("--checkpoint x --batch_sizes some", "batch_sizes='some' must be whole numbers"),
        ("--checkpoint x --questions 40", "questions=40"),
        ("--checkpoint x --estimators best", "estimators='best' is not one of gae"),
        ("--checkpoint x --estimators=", "estimators and recipes are both empty"),
        ("--checkpoint x --worked_solutions 100", "must be at least 3 batches"),
        ("--checkpoint x --completions_per_question 1", "completions_per_question=1"),
        ("--checkpoint /no/such/folder --shares wording=1", "/no/such/folder"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main(["signal", *options.split()])
    said = capsys.readouterr().err.strip()
    assert left.value.code == 2 and message in said and "\n" not in said


def test_no_question_has_both_a_sample_and_a_worked_solution():
    config = SignalConfig(
        checkpoint="-",
        shares="wording=1",
        questions=30,
        batch_sizes="10",
        worked_solutions=30,
        supervised_batch_size=10,
    )
    asked, solved = read_problems(config)
    assert len({p.question for p in asked} | {p.question for p in solved}) == 60
    assert all(problem.thought for problem in solved)


def test_too_few_problems_are_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n}?", "answer": "1"}) + "\n" for n in "abc"))
    few = SignalConfig(checkpoint="-", dataset=str(path), questions=48, batch_sizes="16")
    with pytest.raises(ValueError, match="questions=48 are more than the 3"):
        read_problems(few)
    unsolved = replace(few, questions=3, batch_sizes="1")
    with pytest.raises(ValueError, match="worked_solutions=1024 are more than the 0"):
        read_problems(unsolved)
    asked, solved = read_problems(replace(unsolved, worked_solutions=0))
    assert len(asked) == 3 and solved == []


def test_the_shown_options_are_those_that_differ():
    assert changed_options(PPOOptions(step_lam=0.0, lam=0.95)) == {"step_lam": 0.0}
