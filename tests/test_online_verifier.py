"""The verifier that is fitted during PPO."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pipeline.model import Verifier, load_policy, save_policy, verifier_of
from pipeline.records import Rollout
from pipeline.verifier.online import OnlineVerifier, VerifierStates, verifier_states

END_THINK, NEWLINE, EOS = 3, 4, 1


def rollout_of(rows: list[list[int]], logprobs: list[list[float]]) -> Rollout:
    """Completions of these ids and log-probabilities; V is 0.1 times the place."""
    width = max(map(len, rows))
    mask_BC = torch.tensor([[c < len(row) for c in range(width)] for row in rows])
    blank = torch.ones(len(rows), 1, dtype=torch.long)
    return Rollout(
        prompt_ids_BP=blank,
        mask_prompt_BP=blank.bool(),
        completion_ids_BC=torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        mask_completion_BC=mask_BC,
        logprobs_BC=torch.tensor([row + [0.0] * (width - len(row)) for row in logprobs]),
        values_BC=torch.arange(width).mul(0.1).expand(len(rows), -1).contiguous(),
        truncated_B=torch.zeros(len(rows), dtype=torch.bool),
    )


def states_of(rollout: Rollout, right: list[bool], has_outcome: list[bool] | None = None, group=2):
    return verifier_states(
        rollout,
        torch.tensor(right),
        torch.tensor(has_outcome or [True] * len(right)),
        group,
        step_ends=frozenset([NEWLINE]),
        end_think_id=END_THINK,
    )


def test_a_completion_gives_the_states_that_a_search_meets():
    """Behind the prompt, behind its line of thought, and where its last token is sampled."""
    ids = [[9, NEWLINE, END_THINK, 8, EOS], [END_THINK, EOS]]
    logprobs = [[-1.0, -2.0, 0.0, 0.0, -1.0], [-4.0, 0.0]]
    states = states_of(rollout_of(ids, logprobs), [True, False])
    v, v_start, total, _, _, lowest, _, ended = states.features_NF.T
    assert v.tolist() == torch.tensor([0.0, 0.2, 0.4, 0.0, 0.1]).tolist()
    assert set(v_start.tolist()) == {0.0}
    assert total.tolist() == [0.0, -3.0, -4.0, 0.0, -4.0]
    assert lowest.tolist() == [0.0, -2.0, -2.0, 0.0, -4.0]
    assert ended.tolist() == [0, 0, 1, 0, 1]
    assert states.right_N.tolist() == [1, 1, 1, 0, 0]
    assert states.last_B.tolist() == [2, 4]
    # Only states of one question at the same step are compared.
    assert states.group_N[0] == states.group_N[3] and states.group_N[2] == states.group_N[4]
    assert len(states.group_N.unique()) == 3


def test_completions_without_an_outcome_are_left_out():
    ids, logprobs = [[END_THINK, EOS]] * 2, [[-1.0, 0.0]] * 2
    states = states_of(rollout_of(ids, logprobs), [True, False], has_outcome=[True, False])
    assert len(states.right_N) == 2 and states.last_B.tolist() == [1, -1]
    nothing = states_of(rollout_of(ids, logprobs), [True, False], has_outcome=[False, False])
    verifier = OnlineVerifier(Verifier(), learning_rate=1e-2, steps=2)
    verifier.learn(states, 2)
    before = [p.clone() for p in verifier.parameters]
    assert verifier.learn(nothing, 2) == {"verifier/loss": 0.0}
    assert all(p.isfinite().all() for p in verifier.parameters)
    assert all((p - b).abs().max() < 0.05 for p, b in zip(verifier.parameters, before, strict=True))


def lucky_and_unlucky(seed: int) -> tuple[Rollout, list[bool]]:
    """Eight questions, four completions each; whatever was unlikely is wrong."""
    generator = torch.Generator().manual_seed(seed)
    corrupted_steps = (torch.rand(32, generator=generator) < 0.5).tolist()
    logprobs = [[-3.0 if slip else -0.1, 0.0, 0.0] for slip in corrupted_steps]
    return rollout_of([[9, END_THINK, EOS]] * 32, logprobs), [not slip for slip in corrupted_steps]


def test_it_learns_that_unlikely_paths_go_wrong():
    torch.manual_seed(0)
    verifier = OnlineVerifier(Verifier(), learning_rate=1e-2, steps=4)
    figures = [
        verifier.learn(states_of(rollout, right, group=4), 4)
        for rollout, right in map(lucky_and_unlucky, range(30))
    ]
    assert figures[-1]["verifier/loss"] < 0.5 * figures[0]["verifier/loss"]
    assert figures[-1]["verifier/auroc_within"] == 1.0


def test_its_state_survives_json_to_the_bit():
    torch.manual_seed(0)
    first = OnlineVerifier(Verifier(), learning_rate=1e-2, steps=2)
    rollouts = [states_of(*lucky_and_unlucky(seed), group=4) for seed in range(4)]
    for states in rollouts[:2]:
        first.learn(states, 4)
    second = OnlineVerifier(Verifier(), learning_rate=1e-2, steps=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for states in rollouts[2:]:
        assert first.learn(states, 4) == second.learn(states, 4)
    assert first.state_dict() == second.state_dict()


def halves_of(rollout: Rollout, right: list[bool]) -> list[VerifierStates]:
    """The states of the first and of the last 16 completions, as two processes have them."""
    return [
        states_of(
            Rollout(**{name: x[rows] for name, x in vars(rollout).items()}),
            [right[i] for i in range(32)[rows]],
            group=4,
        )
        for rows in (slice(0, 16), slice(16, 32))
    ]


def test_its_metrics_are_of_the_states_of_all_processes():
    torch.manual_seed(0)
    network, told = Verifier(), []
    rollout, right = lucky_and_unlucky(0)
    rollout = replace(rollout, logprobs_BC=-torch.rand(rollout.logprobs_BC.shape))

    def metrics(states: VerifierStates, average: Callable = lambda x: x) -> dict[str, float]:
        online = OnlineVerifier(network, learning_rate=1e-2, steps=0, average=average)
        return online._metrics_of(states, 4)

    alone = [metrics(part, lambda x: told.append(x) or x) for part in halves_of(rollout, right)]
    together = metrics(halves_of(rollout, right)[0], lambda x: sum(told) / 2)
    whole = metrics(states_of(rollout, right, group=4))
    assert together["verifier/auroc_within"] == pytest.approx(whole["verifier/auroc_within"])
    assert alone[0]["verifier/auroc_within"] != pytest.approx(whole["verifier/auroc_within"])
    losses = [one["verifier/loss"] for one in alone]  # of as many states
    assert together["verifier/loss"] == pytest.approx(sum(losses) / 2)


def test_the_mean_over_processes_is_what_one_process_with_all_rows_does():
    """Two processes of equal shares, told each other's sums by hand."""
    torch.manual_seed(0)
    whole = Verifier()
    states = states_of(*lucky_and_unlucky(0), group=4)
    halves = [Verifier(), Verifier()]
    for half in halves:
        half.load_state_dict(whole.state_dict())
    parts = halves_of(*lucky_and_unlucky(0))
    sums = [
        torch.cat(
            [
                torch.tensor([float(len(p.features_NF))]),
                p.features_NF.sum(0),
                p.features_NF.square().sum(0),
            ]
        )
        for p in parts
    ]
    one = OnlineVerifier(whole, learning_rate=1e-2, steps=1)
    one._standardize(states.features_NF)
    for half, part in zip(halves, parts, strict=True):
        ranked = OnlineVerifier(half, learning_rate=1e-2, steps=1, average=lambda x: sum(sums) / 2)
        ranked._standardize(part.features_NF)
        torch.testing.assert_close(half.mean, whole.mean)
        torch.testing.assert_close(half.scale, whole.scale)


def even_length(completions: list, **columns: object) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_the_policy_is_trained_as_without_it(make_ppo, tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "start")
    ended = []
    for verifier in (False, True):
        model, _ = load_policy(tmp_path / "start", value_head="new")
        trainer = make_ppo(model, even_length, num_rollouts=3, verifier=verifier)
        trainer.train()
        ended.append(weights(model))
        logged = trainer.state.log_history[0]
        assert ("verifier/loss" in logged) == verifier
    assert torch.equal(*ended)


def test_a_checkpoint_has_the_verifier_for_search(make_ppo, policy, tmp_path):
    trainer = make_ppo(policy, even_length, num_rollouts=2, save_every=1, verifier=True)
    trainer.train()
    loaded, _ = load_policy(tmp_path / "ppo" / "checkpoint-2")
    stored, trained = verifier_of(loaded), verifier_of(policy)
    assert trained is trainer.online_verifier.verifier
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, stored.state_dict()[name]), name


def test_a_resumed_run_ends_with_the_verifier_of_an_uninterrupted_one(
    make_ppo, tiny_policy, tokenizer, tmp_path
):
    save_policy(tiny_policy, tokenizer, tmp_path / "start")
    ended = []
    for resume_from in (None, str(tmp_path / "ppo" / "checkpoint-2")):
        model, _ = load_policy(tmp_path / "start", value_head="new")
        trainer = make_ppo(model, even_length, num_rollouts=4, save_every=1, verifier=True)
        trainer.train(resume_from_checkpoint=resume_from)
        ended.append(trainer.online_verifier.state_dict())
    assert ended[0]["rollouts"] == 4
    assert ended[0] == ended[1]


def test_at_another_temperature_it_is_refused(make_ppo, policy):
    with pytest.raises(ValueError, match=r"temperature=0.7; give temperature=1 or verifier"):
        make_ppo(policy, even_length, verifier=True, temperature=0.7)
