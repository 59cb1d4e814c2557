"""The load test of the server: what it calls a fault, and the setting that its peer needs."""

import json

import pytest

from eval.bench.serving import ServeBenchArguments, check_load, sample_by_default

FIGURES = {
    "statuses": {200: 90, 429: 9, 503: 1},
    "p50_s": 1.0,
    "p99_s": 2.0,
    "slowest_client_over_mean": 0.8,
}


def test_a_server_that_answers_or_refuses_all_clients_alike_passes():
    check_load(FIGURES, {})
    check_load(FIGURES, {"p50_s": 0.81, "p99_s": 1.61})


@pytest.mark.parametrize(
    ("changed", "earlier", "said"),
    [
        ({"statuses": {200: 9, 500: 1}}, {}, "statuses {500: 1}"),
        ({"slowest_client_over_mean": 0.4}, {}, "0.40 of the mean"),
        ({}, {"p50_s": 0.79, "p99_s": 2.0}, "p50_s=1.00 is more than 1.25 times"),
        ({}, {"p50_s": 1.0, "p99_s": 1.59}, "p99_s=2.00 is more than 1.25 times"),
    ],
)
def test_a_fault_under_load_is_named(changed, earlier, said):
    with pytest.raises(ValueError, match=said):
        check_load(FIGURES | changed, earlier)


def test_an_earlier_load_test_needs_a_load_test():
    with pytest.raises(ValueError, match="give --seconds"):
        ServeBenchArguments(against="runs/bench/serve-nano.json")


def test_the_peer_samples_and_keeps_the_other_settings(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1}')
    sample_by_default(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored == {"eos_token_id": 1, "do_sample": True}
