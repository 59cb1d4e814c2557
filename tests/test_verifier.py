"""The verifier: its features, its training, its evaluation, and how it is stored."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

import eval.verifier
from eval.verifier import (
    StateScores,
    results_table,
    score_change_at_first_error,
    verifier_results,
)
from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK
from pipeline.generation.shared_prefix import DecodeRequest, PrefixEngine
from pipeline.model import (
    VERIFIER_FILE,
    Verifier,
    load_policy,
    save_policy,
    save_verifier,
    verifier_features,
    verifier_of,
)
from pipeline.model.verifier import FEATURES
from pipeline.records import Problem
from pipeline.runtime import write_json
from pipeline.search import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.stats.value_metrics import value_metrics
from pipeline.verifier.offline import (
    FINAL_STEP,
    Sample,
    States,
    VerifierConfig,
    centred_loss,
    draw_samples,
    fit_value_head,
    fit_verifier,
    read_states,
)
from stages import verifier as stage
from tests.following import next_command


def config(**changes) -> VerifierConfig:
    return VerifierConfig(**{"output_dir": "out", "verifier_epochs": 30} | changes)


# ---- training ----


def simulated_states(questions: int = 120, group: int = 6) -> States:
    """Hidden states encode the difficulty of the question only; a low log-probability marks a wrong
    answer."""
    generator = torch.Generator().manual_seed(1)
    hidden, paths, right, question, step = [], [], [], [], []
    for q in range(questions):
        difficulty = float(torch.rand(1, generator=generator))
        for _ in range(group):
            ok = float(torch.rand(1, generator=generator)) > difficulty
            start = len(paths)
            logprobs = [-0.05, -0.1, -0.05 if ok else -2.0, -0.05]
            for place, k, ended in ((0, 0, False), (2, 1, False), (4, FINAL_STEP, True)):
                hidden.append([difficulty, 1.0, float(k == 0)])
                paths.append((logprobs[:place], start, ended))
                right.append(float(ok))
                question.append(q)
                step.append(k)
    return States(
        hidden_ND=torch.tensor(hidden),
        paths_N=paths,
        right_N=torch.tensor(right),
        question_N=torch.tensor(question),
        step_N=torch.tensor(step),
    )


def test_the_verifier_ranks_by_the_likelihood_what_the_hidden_state_cannot():
    states = simulated_states()
    head = fit_value_head(states, config(verifier_learning_rate=0.05))
    with torch.no_grad():
        values = head(states.hidden_ND)
    verifier = fit_verifier(states, values, config())
    with torch.no_grad():
        scores = verifier(states.features(values))
    last = states.step_N == FINAL_STEP
    by_value, by_score = (
        value_metrics(*(x_N[last].numpy() for x_N in (x, states.right_N, states.question_N)))
        for x in (values, scores)
    )
    within_question = "within_question_auroc_mean"
    assert by_value["auroc"] > 0.7 and abs(by_value[within_question] - 0.5) < 0.02
    assert by_score[within_question] > 0.99 and by_score["best_of_n"] > by_value["best_of_n"]
    # After the prompt the features are equal within a question, and so is the score.
    first = states.step_N == 0
    spread = scores[first].view(-1, 6).std(dim=1).max()
    assert spread < 1e-5


def test_the_centred_loss_depends_on_differences_within_a_group_only():
    generator = torch.Generator().manual_seed(2)
    values, targets = torch.rand(12, generator=generator), torch.rand(12, generator=generator)
    group = torch.tensor([0, 0, 0, 5, 5, 5, 7, 7, 9, 9, 9, 9])
    shift = torch.tensor([10.0, -3.0, 0.5, 99.0])[group.unique(return_inverse=True)[1]]
    loss = centred_loss(values, targets, group)
    torch.testing.assert_close(
        centred_loss(values + shift, targets, group), loss, atol=1e-4, rtol=0
    )
    alone = centred_loss(values, targets, torch.arange(12))
    assert alone.item() == 0.0  # one state a group: nothing to compare
    # By hand: values 0, 1 and targets 1, 0 differ by -1, 1; less their mean, 0: squares 1, 1.
    swapped = centred_loss(
        torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), torch.zeros(2).long()
    )
    assert swapped.item() == 1.0


def test_features_by_hand():
    features = verifier_features([-0.5, -1.5], 0.2, 0.7, ended=False)
    expected = [0.7, 0.2, -2.0, -(2**0.5), math.exp(-2), -1.5, math.log(3), 0.0]
    assert features == pytest.approx(expected)
    assert verifier_features([], 0.2, 0.2, ended=False)[2:6] == [0.0, 0.0, 1.0, 0.0]


def test_the_states_of_training_are_those_of_a_search(tiny_policy, tokenizer):
    """One forward pass over a sample gives the features that a search computes step by step."""
    prompt = encode_prompts(tokenizer, ["What is 12 + 7?"])[0]
    engine = PrefixEngine(tiny_policy, tokenizer)
    (sequence,) = engine.start([prompt])
    newline = tokenizer.encode("\n", add_special_tokens=False)[0]
    seen = [sequence]
    for i in range(40):
        ask = DecodeRequest(
            sequence=sequence, budget=60, stream=(i,), temperature=1.5, max_step_tokens=40
        )
        (grown,) = engine.extend([ask])
        if grown.ended or grown.closed or grown.ids[-1] == newline:
            sequence = grown
            seen.append(sequence)
        if sequence.ended:
            break
    sample = Sample(q=0, prompt_ids=prompt, ids=list(sequence.ids), right=True)
    states = read_states(tiny_policy, tokenizer, [sample])
    with torch.no_grad():
        values = tiny_policy.value_head(states.hidden_ND)
    features = states.features(values).tolist()
    found = {
        len(logprobs): row for (logprobs, *_), row in zip(states.paths_N, features, strict=True)
    }
    met = [b for b in seen if b.ended or not b.closed]
    assert len(met) >= 1
    for b in met:
        own = verifier_features(b.logprobs, (*b.values, b.value)[0], b.value, ended=b.ended)
        if len(b.ids) in found:
            assert own == pytest.approx(found[len(b.ids)], abs=1e-4)
    assert len(states.paths_N[0][0]) == 0 and len(states.paths_N[-1][0]) == len(sequence.ids)


# ---- storing, loading, scoring ----


def test_a_stored_verifier_scores_the_answers_of_a_search(tmp_path, tiny_policy, tokenizer):
    verifier = Verifier(hidden=4)
    with torch.no_grad():
        verifier.mean.fill_(0.3)
    save_policy(tiny_policy, tokenizer, tmp_path)
    save_verifier(verifier, tmp_path)
    model, _ = load_policy(tmp_path)
    again = verifier_of(model)
    features = torch.rand(5, 8)
    torch.testing.assert_close(again(features), verifier(features))
    session = SearchSession(model, tokenizer, ["12 + 7"], SearchOptions(max_completion_tokens=5))
    (sequence,) = session.finish([ExpandRequest(q=0, sequence=session.roots[0], stream=(0,))])
    own = verifier_features(
        sequence.logprobs, sequence.values[0], sequence.value, ended=sequence.ended
    )
    assert sequence.score == pytest.approx(verifier(torch.tensor([own])).item(), abs=1e-6)
    assert session.answer(0, sequence).value == sequence.score != sequence.value
    # A verifier belongs to its value head: a new value head is loaded without it.
    assert verifier_of(load_policy(tmp_path, value_head="new")[0]) is None
    assert not any("critic" in name for name in model.state_dict())


@pytest.mark.parametrize("key", ["critic", "verifier"])
def test_a_verifier_under_its_old_file_name_is_loaded(key, tmp_path, tiny_policy, tokenizer):
    verifier = Verifier(hidden=4)
    save_policy(tiny_policy, tokenizer, tmp_path)
    about = json.dumps({"hidden": 4, "features": FEATURES})
    save_file(verifier.state_dict(), tmp_path / "critic.safetensors", metadata={key: about})
    features = torch.rand(5, len(FEATURES))
    loaded = verifier_of(load_policy(tmp_path)[0])
    torch.testing.assert_close(loaded(features), verifier(features))


def test_a_verifier_with_other_features_is_rejected(tmp_path, tiny_policy, tokenizer, monkeypatch):
    save_policy(tiny_policy, tokenizer, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.model.verifier.FEATURES", ("v", "mood"))
        save_verifier(Verifier(), tmp_path)
    with pytest.raises(ValueError, match=r"train it again with python -m stages\.verifier"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"output_dir": ""}, "--output_dir is missing"),
        ({"held_out": 1.0}, r"held_out=1.0 must lie in \(0, 1\)"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0: at 0 all samples are equal"),
        ({"completions_per_question": 1}, "nothing to compare within a question"),
        ({"centred_coef": -1.0}, "centred_coef=-1.0 must be at least 0"),
    ],
)
def test_invalid_settings_are_rejected(bad, message):
    with pytest.raises(ValueError, match=message):
        config(**bad)


def test_samples_are_graded_as_in_the_evaluation(planted, tokenizer):
    model = planted({f"a{END_THINK}4<eos>": 0.5, f"b{END_THINK}5<eos>": 0.5, "ccc": 0.3})
    problems = [Problem(question="2 + 2?", answer="4"), Problem(question="2 + 3?", answer="5")]
    samples = draw_samples(model, tokenizer, problems, config(completions_per_question=12))
    assert [s.q for s in samples] == [0] * 12 + [1] * 12
    for sample in samples:
        text = tokenizer.decode(sample.ids)
        assert sample.right == text.endswith("5<eos>" if sample.q else "4<eos>")
    assert len({s.right for s in samples}) == 2


def test_the_command_fits_and_evaluates_and_reuses_its_samples(
    tmp_path, tiny_policy, tokenizer, capsys, monkeypatch
):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    command = ["--checkpoint", str(tmp_path / "policy"), "--output_dir", str(tmp_path / "trained")]
    command += ["--shares", "wording=1", "--size", "6", "--completions_per_question", "3"]
    command += ["--max_completion_length", "8", "--verifier_epochs", "2"]
    stage.main(command)
    folder = tmp_path / "trained"
    assert next_command(capsys.readouterr().out).checkpoint == str(folder)
    assert (folder / VERIFIER_FILE).is_file()
    figures = json.loads((folder / "verifier.json").read_text())
    assert {"value head", "likelihood", "verifier"} <= figures.keys()
    assert len((folder / "rollouts.jsonl").read_text().splitlines()) == 18
    before, after = (load_policy(f)[0] for f in (tmp_path / "policy", folder))
    assert torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert not torch.equal(before.value_head.last.weight, after.value_head.last.weight)
    monkeypatch.setattr(stage, "draw_samples", None)  # must not be called a second time
    stage.main(command)
    assert json.loads((folder / "verifier.json").read_text()) == figures
    with pytest.raises(SystemExit):
        stage.main([*command[:2], "--output_dir", str(tmp_path / "policy")])
    assert "is the folder of the policy" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["weights", "problems", "temperature"])
def test_samples_of_another_policy_of_other_rows_or_settings_are_refused(
    tmp_path, tiny_policy, tokenizer, capsys, changed
):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(6)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, more = tmp_path / "out", []
    command = [
        *("--checkpoint", str(tmp_path / "policy"), "--shares", "", "--output_dir", str(out)),
        *("--dataset", str(own), "--overlap", "allow", "--completions_per_question", "2"),
        *("--size", "", "--max_completion_length", "4", "--verifier_epochs", "1"),
    ]
    stage.main(command)
    rollouts = out / "rollouts.jsonl"
    whole = rollouts.read_text()
    rollouts.write_text(whole[:-9])
    with pytest.raises(SystemExit):
        stage.main(command)
    error = capsys.readouterr().err
    assert f"{rollouts} is damaged" in error and f"or delete {rollouts}" in error
    rollouts.write_text(whole)
    if changed == "weights":
        with torch.no_grad():
            tiny_policy.lm_head.weight.mul_(1.5)
        save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    elif changed == "problems":
        own.write_text(json.dumps({"question": "1+0?", "answer": "1"}) + "\n" + own.read_text())
    else:
        more = ["--temperature", "0.5"]
    with pytest.raises(SystemExit) as stop:
        stage.main([*command, *more])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"has samples with {changed}=" in error
    assert "give another --output_dir, or delete" in error
    # A file of samples that is named is compared with the policy alone.
    named = [*command, *more, "--rollouts", str(out / "rollouts.jsonl"), "--output_dir"]
    if changed == "weights":
        with pytest.raises(SystemExit):
            stage.main([*named, str(tmp_path / "other")])
        assert "or leave out --rollouts" in capsys.readouterr().err
    else:
        stage.main([*named, str(tmp_path / "other")])


@pytest.mark.parametrize(
    "prompt", [("system_prompt", "Be brief."), ("few_shot", "2"), ("chat_template", "plain")]
)
def test_another_prompt_than_that_of_the_policy_is_refused(tmp_path, capsys, prompt):
    with pytest.raises(SystemExit) as stop:
        stage.main(
            ["--checkpoint", "any", "--output_dir", str(tmp_path), f"--{prompt[0]}", prompt[1]]
        )
    assert stop.value.code == 2 and f"{prompt[0]}={prompt[1]} would" in capsys.readouterr().err


# ---- evaluation ----


def states_of(
    q: int, answer: int, steps: list[tuple[bool, float, float | None]]
) -> list[StateScores]:
    """States of one answer: whether the step is correct, the score, the Monte-Carlo value."""
    return [
        StateScores(
            q=q,
            answer=answer,
            step=k,
            ended=k == len(steps) - 1,
            step_correct=correct,
            right=right,
            scores=dict.fromkeys(("value head", "score", "likelihood"), value),
        )
        for k, (correct, value, right) in enumerate(steps)
    ]


def test_the_score_change_is_that_of_the_first_incorrect_step_only():
    wrong = states_of(
        0, 0, [(True, 0.5, 0.5), (True, 0.6, 0.6), (False, 0.2, 0.1), (False, 0.9, 0.0)]
    )
    also = states_of(0, 1, [(True, 0.5, 0.5), (False, 0.7, 0.0)])
    right = states_of(0, 2, [(True, 0.5, 0.5), (True, 0.9, 1.0)])
    found = score_change_at_first_error([*wrong, *also, *right], "score")
    # First incorrect steps: 0.6 to 0.2 and 0.5 to 0.7. Correct ones before: +0.1, and +0.4.
    assert (found["n"], found["share_decreasing"]) == (2, 0.5)
    assert found["mean_change"] == pytest.approx((-0.4 + 0.2) / 2)
    assert found["mean_change_correct"] == pytest.approx((0.1 + 0.4) / 2)
    assert score_change_at_first_error([*wrong, *also], None)["share_decreasing"] == 1.0


def test_the_results_compare_answers_of_one_question_and_states_of_one_step():
    states = [
        *states_of(0, 0, [(True, 0.5, 0.5), (True, 0.8, 0.9), (True, 0.9, 1.0)]),
        *states_of(0, 1, [(True, 0.5, 0.5), (False, 0.3, 0.1), (True, 0.2, 0.0)]),
    ]
    results = verifier_results(states)
    assert results["answers"] == 2
    for scorer in ("value head", "score", "likelihood"):
        final, intermediate = (
            results[scorer]["final states"],
            results[scorer]["intermediate states"],
        )
        assert final["within_question_auroc_mean"] == 1.0 == final["best_of_n"]
        assert intermediate["within_question_auroc_mean"] == 1.0
        # Final values 0.9 (right) and 0.2 (wrong), intermediate ones 0.8 and 0.3 of 0.9 and 0.1.
        assert [(b["n"], b["value"], b["right"]) for b in final["calibration"]] == [
            (1, 0.2, 0.0),
            (1, 0.9, 1.0),
        ]
        assert final["calibration_error"] == pytest.approx(0.15)
        assert intermediate["brier"] == pytest.approx((0.1**2 + 0.2**2) / 2)
    assert "100.0% of 1" in results_table(results | {"suite": "sums"})


def test_the_first_error_of_an_answer_is_found_without_monte_carlo_values():
    wrong = states_of(0, 0, [(True, 0.5, None), (True, 0.6, None), (False, 0.2, 0.0)])
    right = states_of(0, 1, [(True, 0.5, None), (True, 0.9, 1.0)])
    results = verifier_results([*wrong, *right])
    found = results["value head"]["first incorrect step"]
    assert (found["n"], found["share_decreasing"]) == (1, 1.0)
    assert found["mean_change"] == pytest.approx(-0.4)
    assert found["mean_change_correct"] == pytest.approx((0.1 + 0.4) / 2)
    assert results["monte carlo"]["first incorrect step"]["n"] == 0
    assert "intermediate states" not in results["value head"]
    table = results_table(results | {"suite": "sums"})
    assert "no errors" not in table and table.endswith("drops at first error: -")


def test_states_of_different_questions_are_never_compared_however_long_the_answers_are():
    def state(q: int, step: int, score: float, right: float) -> list[StateScores]:
        only = states_of(q, step, [(True, score, right), (True, score, right)])
        return [dataclasses.replace(only[0], step=step), dataclasses.replace(only[1], step=step)]

    # Step 1001 of question 0 and step 1 of question 1: nothing to compare.
    results = verifier_results([*state(0, 1001, 0.9, 1.0), *state(1, 1, 0.2, 0.0)])
    assert results["value head"]["intermediate states"]["questions_compared"] == 0


def test_the_command_of_the_evaluation_compares_the_scorers_on_a_suite(
    planted, tokenizer, tmp_path, monkeypatch, capsys
):
    rows = [{"question": "2+2?", "answer": "4"}, {"question": "2+3?", "answer": "5"}]
    suite = tmp_path / "sums.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Right half of the time on both questions; V is 0.8 for "4" and 0.3 for "5".
    texts = {f"a\n{END_THINK}4<eos>": 0.5, f"b\n{END_THINK}5<eos>": 0.5}
    model = planted(texts, value=lambda text: 0.8 if text.startswith("a") else 0.3)
    monkeypatch.setattr(eval.verifier, "load_checkpoint", lambda *_: (model, tokenizer))
    command = ["--checkpoint", "any", "--suite", str(suite), "--n", "12", "--rollouts", "2"]
    eval.verifier.main([*command, "--output_dir", str(tmp_path / "out")])
    figures = json.loads((tmp_path / "out" / "verifier.json").read_text())
    assert figures["answers"] == 24
    # It ranks the first question's answers rightly and the second one's the wrong way round.
    assert figures["value head"]["final states"]["within_question_auroc_mean"] == 0.5
    assert "value head" in capsys.readouterr().out
    eval.verifier.main([*command, "--output_dir", str(tmp_path / "out")])  # replaces its own result
    # A checkpoint keeps its run.json, from which its model card is made.
    write_json(tmp_path / "ppo" / "run.json", {"configs": {"ppo": {}}})
    with pytest.raises(SystemExit):
        eval.verifier.main([*command, "--output_dir", str(tmp_path / "ppo")])
    assert "holds a finished run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "ppo").iterdir()] == ["run.json"]


def test_figures_that_are_not_defined_are_null_and_a_dash(
    planted, tokenizer, tmp_path, monkeypatch, capsys
):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "2+2?", "answer": "4"}))
    model = planted({f"a\n{END_THINK}4<eos>": 1.0}, value=lambda text: 0.8)
    monkeypatch.setattr(eval.verifier, "load_checkpoint", lambda *_: (model, tokenizer))
    command = ["--checkpoint", "any", "--suite", str(tmp_path / "sums.jsonl"), "--n", "2"]
    eval.verifier.main([*command, "--rollouts", "1", "--output_dir", str(tmp_path / "out")])
    text = (tmp_path / "out" / "verifier.json").read_text()
    figures = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert figures["suite"] == "sums.jsonl"  # without its folder
    assert figures["value head"]["final states"]["auroc"] is None  # all answers are right
    assert "nan" not in capsys.readouterr().out


def test_an_evaluation_of_a_question_without_room_for_its_answer_is_refused(
    planted, tokenizer, tmp_path, monkeypatch, capsys
):
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": "2+2?", "answer": "4"}))
    model = planted({f"a\n{END_THINK}4<eos>": 1.0}, value=lambda text: 0.8)
    monkeypatch.setattr(model.config, "max_position_embeddings", 6)
    monkeypatch.setattr(eval.verifier, "load_checkpoint", lambda *_: (model, tokenizer))
    command = ["--checkpoint", "any", "--suite", str(tmp_path / "sums.jsonl"), "--n", "2"]
    with pytest.raises(SystemExit):
        eval.verifier.main([*command, "--output_dir", str(tmp_path / "out")])
    assert "allows 256 tokens per answer, but beside question" in capsys.readouterr().err


def test_an_evaluation_without_an_answer_that_ends_is_refused():
    started = states_of(0, 0, [(True, 0.5, 0.5), (True, 0.5, 0.5)])[:1]
    with pytest.raises(ValueError, match="raise max_sample_tokens"):
        verifier_results(started)
