"""Strategies on completions written by hand: who wins a vote, and what it cost."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK, THINK
from pipeline.generation.sequence import PartialSequence, TokenPath
from pipeline.generation.shared_prefix import PrefixEngine
from pipeline.grading import same_answer
from pipeline.records import Answer, Usage
from pipeline.search import (
    NEED_VALUES,
    STRATEGIES,
    SearchOptions,
    check_strategy,
    clusters,
    select_by_vote,
)
from pipeline.search.consensus import value_weights
from pipeline.search.session import SearchSession

GREEDY = SearchOptions(temperature=0.0)


MODEL = SimpleNamespace(
    config=SimpleNamespace(max_position_embeddings=None), value_head=SimpleNamespace()
)


@pytest.fixture
def script(monkeypatch, tokenizer) -> Callable:
    """`calls = script([...], values=...)`: the engine returns these completions for any request.

    A completion that does not end in "<eos>" was truncated. `calls` collects the requests.
    """

    def install(completions: list[str], values: list[float] | None = None) -> list:
        calls = []

        class ScriptedEngine:
            def __init__(self, model, tokenizer, *, batch_size):
                calls.append({"batch_size": batch_size})

            def start(self, prompts, *, closed):
                calls[-1]["prompts"] = prompts
                value = None if values is None else -9.0
                return [
                    PartialSequence(prompt_tokens=len(p), value=value, closed=closed)
                    for p in prompts
                ]

            def extend(self, requests):
                calls[-1]["requests"] = requests
                return [_sequence(tokenizer, request, i) for i, request in enumerate(requests)]

        def _sequence(tokenizer, request, i):
            return replace(
                request.sequence,
                tokens=TokenPath().then(tuple(_ids(tokenizer, completions[i])), (), ()),
                value=None if values is None else values[i],
                ended=completions[i].endswith("<eos>"),
            )

        monkeypatch.setattr("pipeline.search.session.new_engine", ScriptedEngine)
        return calls

    return install


def _ids(tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text.removesuffix("<eos>"), add_special_tokens=False)
    return ids + [tokenizer.eos_token_id] * text.endswith("<eos>")


def _tokens(tokenizer, text: str) -> int:
    return len(_ids(tokenizer, text))


def test_a_completion_is_split_into_thought_and_answer(script, tokenizer):
    script([f"12+7=19{END_THINK}19<eos>"])
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["What is 12 + 7?"], GREEDY)
    assert (answer.text, answer.thought, answer.finish_reason) == ("19", "12+7=19", "stop")


def test_the_closing_tag_is_reasoning_and_the_end_token_is_visible(script, tokenizer):
    calls = script([f"12+7=19{END_THINK}19<eos>"])
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["What is 12 + 7?"], GREEDY)
    assert answer.usage == Usage(
        prompt_tokens=len(calls[0]["prompts"][0]),
        reasoning_tokens=_tokens(tokenizer, "12+7=19") + 1,
        visible_tokens=_tokens(tokenizer, "19") + 1,
    )


def test_the_prompt_is_counted_without_its_padding(script, tokenizer):
    calls = script([f"1{END_THINK}1<eos>"] * 2)
    answers = STRATEGIES["greedy"](MODEL, tokenizer, ["What is 12 + 7?", "12+7"], GREEDY)
    lengths = [len(prompt) for prompt in calls[0]["prompts"]]
    assert [a.usage.prompt_tokens for a in answers] == lengths
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize("completion", ["12+7=19", "12+7=19<eos>", f"12+7=19{END_THINK}<eos>"])
def test_without_a_visible_answer_the_text_is_empty(script, tokenizer, completion):
    script([completion])
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["q"], GREEDY)
    assert (answer.text, answer.thought, answer.finish_reason) == ("", "12+7=19", "length")


def test_an_answer_cut_off_by_the_budget_has_finish_reason_length(script, tokenizer):
    script([f"7{END_THINK}12"])
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["q"], GREEDY)
    assert (answer.text, answer.finish_reason) == ("12", "length")


def test_without_thinking_every_token_is_visible(script, tokenizer):
    calls = script(["19<eos>"])
    direct = SearchOptions(think=False)
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["12 + 7"], direct)
    assert (answer.text, answer.thought, answer.usage.reasoning_tokens) == ("19", "", 0)
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    assert end_think_id in calls[0]["prompts"][0]


@pytest.mark.parametrize(
    ("completion", "text"), [(f"{THINK}secret{END_THINK}4<eos>", "4"), (f"{THINK}secret<eos>", "")]
)
def test_a_thought_written_with_think_false_stays_hidden(script, tokenizer, completion, text):
    script([completion])
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["q"], SearchOptions(think=False))
    assert (answer.text, answer.thought) == (text, "secret")


def test_greedy_ignores_the_temperature_of_the_options(script, tokenizer):
    calls = script([f"{END_THINK}4<eos>"])
    options = SearchOptions(temperature=0.9, seed=5, batch_size=3, max_completion_tokens=11)
    STRATEGIES["greedy"](MODEL, tokenizer, ["q"], options)
    (request,) = calls[0]["requests"]
    assert (request.temperature, request.stream[0], request.budget, calls[0]["batch_size"]) == (
        0.0,
        5,
        11,
        3,
    )


def test_the_samples_of_two_questions_are_one_batch(script, tokenizer):
    one, two = f"1{END_THINK}1<eos>", f"2{END_THINK}2<eos>"
    calls = script([one, one, two, two, two, one])
    options = SearchOptions(n=3, temperature=0.8)
    answers = STRATEGIES["consensus"](MODEL, tokenizer, ["a", "b"], options)
    assert [a.text for a in answers] == ["1", "2"]
    assert len(calls) == 1
    assert [request.temperature for request in calls[0]["requests"]] == [0.8] * 6
    assert len({request.stream for request in calls[0]["requests"]}) == 6


def test_the_usage_of_a_vote_counts_all_samples_and_the_prompt_once(script, tokenizer):
    samples = [f"1+1=2{END_THINK}2<eos>", f"3{END_THINK}3<eos>", "1+1+1+1"]
    calls = script(samples)
    (answer,) = STRATEGIES["consensus"](MODEL, tokenizer, ["q"], SearchOptions(n=3))
    spent = sum(_tokens(tokenizer, sample) for sample in samples)
    assert answer.usage.completion_tokens == spent
    assert answer.usage.prompt_tokens == len(calls[0]["prompts"][0])
    assert answer.usage.visible_tokens == _tokens(tokenizer, "2<eos>") + _tokens(
        tokenizer, "3<eos>"
    )


def test_the_value_of_a_vote_is_the_mean_over_the_winning_samples(script, tokenizer):
    two, three = f"1{END_THINK}2<eos>", f"1{END_THINK}3<eos>"
    script([two, three, two], values=[0.5, 0.9, 0.25])
    (answer,) = STRATEGIES["consensus"](MODEL, tokenizer, ["q"], SearchOptions(n=3))
    assert answer.value == 0.375


def test_without_a_value_head_there_is_no_value(script, tokenizer):
    script([f"1{END_THINK}2<eos>"])
    (answer,) = STRATEGIES["greedy"](MODEL, tokenizer, ["q"], GREEDY)
    assert answer.value is None


def test_the_thought_belongs_to_the_winner():
    votes = [Answer(text=t, thought=f"thought {i}") for i, t in enumerate(["3", "4", "4"])]
    assert select_by_vote(votes).thought == "thought 1"


def test_a_tie_goes_to_the_answer_seen_first():
    assert select_by_vote([Answer(text=t) for t in ["5", "6", "6", "5"]]).text == "5"
    assert select_by_vote([Answer(text=t) for t in ["6", "5", "5", "6"]]).text == "6"


def test_unfinished_samples_cast_no_vote():
    cut = [Answer(text="1", finish_reason="length") for _ in range(5)]
    assert select_by_vote([*cut, Answer(text="12")]).text == "12"


def test_without_votes_the_text_is_empty_and_the_usage_is_counted():
    cut = Answer(text="1", finish_reason="length", usage=Usage(prompt_tokens=3, visible_tokens=2))
    won = select_by_vote([cut, cut])
    assert (won.text, won.finish_reason) == ("", "length")
    assert won.usage == Usage(prompt_tokens=3, visible_tokens=4)


def test_equivalent_answers_in_different_notation_share_votes():
    votes = [Answer(text=t) for t in ["1,000", "7", "7", "1000", "The answer is 1000.0"]]
    assert same_answer(select_by_vote(votes).text, "1000")


def test_a_vote_reads_a_percentage_as_the_question_asks_for_it():
    question = "20 of 100 cars are red. What percentage of the cars is red?"
    votes = [Answer(text=text) for text in ["30", "30", "20%", "20", r"20\%"]]
    assert select_by_vote(votes, question=question).text == "20%"
    assert select_by_vote(votes).text == "30"
    assert clusters(["20%", "20"], question=question) == [[0, 1]]
    assert clusters(["20%", "20"]) == [[0], [1]]


@pytest.mark.parametrize("name", ["consensus", "likelihood"])
def test_a_strategy_that_votes_passes_the_question_to_the_vote(name, script, tokenizer):
    script([f"{t}{END_THINK}{a}<eos>" for t, a in [("a", "30"), ("b", "20%"), ("c", "20")]])
    question = "What percentage of the cars is red?"
    chat = [{"role": "user", "content": question}]
    options = SearchOptions(n=3, temperature=1.0)
    for asked, votes in ((question, [2, 1]), (chat, [2, 1]), ("How many?", [1, 1, 1])):
        (answer,) = STRATEGIES[name](MODEL, tokenizer, [asked], options)
        assert sorted(answer.notes["votes"], reverse=True) == votes


def test_an_unevaluated_sum_and_its_result_are_different_answers():
    assert clusters(["40+2", "42", "42"]) == [[1, 2], [0]]


def test_clusters_are_ordered_by_size_and_leave_out_empty_answers():
    assert clusters(["7", "", "8", "8", "7", "8"]) == [[2, 3, 5], [0, 4]]
    assert clusters(["", ""]) == clusters([]) == []


def test_equal_strings_are_not_compared_by_the_grader(monkeypatch):
    compared = []

    def compare(answer: str, expected: str, question: str) -> bool:
        compared.append((answer, expected))
        return same_answer(answer, expected, question)

    monkeypatch.setattr("pipeline.search.consensus.same_answer", compare)
    assert len(clusters(["4"] * 64)[0]) == 64
    assert compared == []
    clusters(["4", "5"] * 32)
    assert compared == []  # other numbers have other keys
    clusters(["4", "4.0"] * 32)
    assert compared == [("4.0", "4"), ("4", "4.0")]


def test_more_samples_of_the_winning_answer_never_change_the_winner():
    votes = [Answer(text=t) for t in ["3", "4", "4"]]
    for _ in range(5):
        votes.append(Answer(text="4"))
        assert select_by_vote(votes).text == "4"


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"n": 2.7}, "n=2.7 must be a whole number"),
        ({"n": True}, "n=True must be a whole number"),
        ({"batch_size": "64"}, "batch_size='64' must be a whole number"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"temperature": -0.1}, "temperature=-0.1 must lie in"),
        ({"temperature": float("nan")}, r"temperature=nan must lie in \[0, inf\)"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"think": "no"}, "think='no' must be true or false"),
    ],
)
def test_options_out_of_range_are_rejected(bad, rule):
    with pytest.raises(ValueError, match=rule):
        SearchOptions(**bad)


@pytest.mark.parametrize("name", ["greedy", "sample"])
def test_strategies_with_one_sample_reject_a_larger_n(name):
    with pytest.raises(ValueError, match=f"n=4, but {name} gives one sample"):
        STRATEGIES[name](None, None, [], SearchOptions(n=4))


@pytest.mark.parametrize(
    ("name", "option"),
    [("beam", "width"), ("mcts", "simulations"), ("revise", "retries"), ("calculator", "retries")],
)
def test_a_search_without_n_samples_rejects_another_n_and_names_its_option(name, option):
    with pytest.raises(ValueError, match=f"n=8, but {name} does not.*n at 1 and set {option}"):
        check_strategy(name, SearchOptions(n=8))
    check_strategy(name, SearchOptions(n=1))


@pytest.mark.parametrize("name", ["sample", "consensus"])
def test_sampling_strategies_reject_temperature_zero(name):
    with pytest.raises(ValueError, match="raise the temperature or take the strategy greedy"):
        STRATEGIES[name](None, None, [], SearchOptions(temperature=0.0))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_questions_get_no_answers(name):
    assert STRATEGIES[name](None, None, [], SearchOptions()) == []


SMALL = {"step_tokens": 4, "answer_tokens": 2, "simulations": 4, "retries": 2, "width": 2}
QUESTIONS = ["What is 12 + 7?", "Tom has 3 apples and buys 4 more. How many apples?"]


def _small(name: str, **changes) -> SearchOptions:
    n = 1 if name in ("greedy", "sample") else 3
    return SearchOptions(**SMALL | {"n": n, "max_completion_tokens": 40, "seed": 3} | changes)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_answers_do_not_depend_on_other_questions_or_the_batch_size(name, tiny_policy, tokenizer):
    options = _small(name, max_completion_tokens=16)
    strategy = STRATEGIES[name]
    once = strategy(tiny_policy, tokenizer, QUESTIONS, options)
    again = strategy(tiny_policy, tokenizer, QUESTIONS, options)
    assert once == again
    alone = [
        strategy(tiny_policy, tokenizer, [q], replace(options, batch_size=1))[0] for q in QUESTIONS
    ]
    for one, other in zip(once, alone, strict=True):
        assert (one.text, one.thought, one.usage) == (other.text, other.thought, other.usage)
        assert one.value == pytest.approx(other.value, abs=1e-4)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_usage_equals_the_generated_tokens_and_stays_within_the_budget(
    name, tiny_policy, tokenizer, monkeypatch
):
    _check_random_budgets(name, tiny_policy, tokenizer, monkeypatch, runs=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_no_budget_is_exceeded_in_ten_thousand_runs(name, tiny_policy, tokenizer, monkeypatch):
    runs = math.ceil(10_000 / len(STRATEGIES) / len(QUESTIONS))
    _check_random_budgets(name, tiny_policy, tokenizer, monkeypatch, runs=runs)


def _check_random_budgets(name, model, tokenizer, monkeypatch, *, runs: int) -> None:
    engines = _record_engines(monkeypatch)
    rng = random.Random(name)
    for run in range(runs):
        several = name not in ("greedy", "sample")
        options = SearchOptions(
            n=rng.choice([1, 2, 5]) if several else 1,
            max_completion_tokens=rng.choice([1, 2, 7, 20, 60, 120]),
            max_sample_tokens=rng.choice([None, 1, 9, 30]),
            answer_tokens=rng.choice([0, 1, 4]),
            step_tokens=rng.choice([1, 3, 8]),
            branches=rng.choice([1, 3]),
            width=rng.choice([1, 2]),
            simulations=rng.choice([1, 5]),
            leaves=rng.choice([1, 3]),
            playouts=rng.choice([0, 1, 2]),
            retries=rng.choice([0, 3]),
            fall=rng.choice([0.0, 0.05]),
            first_samples=rng.choice([1, 3]),
            temperature=rng.choice([0.7, 1.5]),
            batch_size=rng.choice([1, 4, 64]),
            think=rng.random() < 0.8,
            seed=run,
        )
        answers = STRATEGIES[name](model, tokenizer, QUESTIONS, options)
        spent = [answer.usage.completion_tokens for answer in answers]
        assert max(spent) <= options.max_completion_tokens, options
        assert sum(spent) == engines[-1].generated_tokens, options
        for answer in answers:
            assert min(answer.usage.reasoning_tokens, answer.usage.visible_tokens) >= 0


def _record_engines(monkeypatch) -> list[PrefixEngine]:
    engines = []

    class Recorded(PrefixEngine):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            engines.append(self)

    monkeypatch.setattr("pipeline.search.session.new_engine", Recorded)
    return engines


@pytest.mark.parametrize("name", NEED_VALUES)
def test_strategies_that_need_values_reject_a_model_without_a_value_head(name, planted, tokenizer):
    model = planted({f"a{END_THINK}1<eos>": 1.0})
    with pytest.raises(ValueError, match=f"{name} needs a value head.*value_head.safetensors"):
        STRATEGIES[name](model, tokenizer, ["q"], SearchOptions())


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in NEED_VALUES])
def test_other_strategies_need_no_value_head(name, planted, tokenizer):
    model = planted({f"1+1=2\n{END_THINK}2<eos>": 1.0})
    (answer,) = STRATEGIES[name](model, tokenizer, ["q"], SearchOptions())
    assert (answer.text, answer.value) == ("2", None)


def test_another_seed_gives_other_samples(tiny_policy, tokenizer):
    one, other = (
        SearchOptions(seed=seed, temperature=1.0, max_completion_tokens=12) for seed in (1, 2)
    )
    sample = STRATEGIES["sample"]
    answers = [sample(tiny_policy, tokenizer, ["12 + 7"], options) for options in (one, other)]
    assert answers[0] != answers[1]


# ---- one budget ----


def test_a_thought_that_would_use_up_the_budget_is_closed_for_the_answer(planted, tokenizer):
    long = "abcdefghijklmnopqrst"
    model = planted({f"{long}{END_THINK}1<eos>": 1.0, f"abcd{END_THINK}7<eos>": 1e-9})
    options = SearchOptions(max_completion_tokens=8, answer_tokens=3)
    (answer,) = STRATEGIES["greedy"](model, tokenizer, ["q"], options)
    assert (answer.thought, answer.text, answer.finish_reason) == ("abcd", "7", "stop")
    assert answer.forced and answer.usage.reasoning_tokens == 5
    (cut,) = STRATEGIES["greedy"](model, tokenizer, ["q"], replace(options, answer_tokens=0))
    assert (cut.text, cut.finish_reason, cut.forced) == ("", "length", False)
    assert cut.usage.completion_tokens == 8


def test_tokens_left_by_short_samples_pay_for_further_ones(planted, tokenizer):
    # Each sample takes 4 tokens of the 10 it may; two fit side by side, later ones one by one.
    model = planted({f"a{END_THINK}1<eos>": 1.0})
    options = SearchOptions(n=9, max_completion_tokens=24, max_sample_tokens=10)
    (answer,) = STRATEGIES["consensus"](model, tokenizer, ["q"], options)
    assert answer.notes["samples"] == 6
    assert answer.usage.completion_tokens == 24


def test_the_effort_sets_the_budget(planted, tokenizer):
    model = planted({f"a{END_THINK}1<eos>": 1.0})
    spent = []
    for effort in ("low", "medium", "high"):
        options = SearchOptions(
            n=9, reasoning_effort=effort, efforts="low=4,medium=8,high=16", max_sample_tokens=4
        )
        (answer,) = STRATEGIES["consensus"](model, tokenizer, ["q"], options)
        spent.append(answer.usage.completion_tokens)
    assert spent == [4, 8, 16]


def test_the_context_window_limits_the_length_of_a_sample(planted, tokenizer):
    completion = {f"{'a' * 60}{END_THINK}1<eos>": 1.0}
    wide = planted(completion)
    (answer,) = STRATEGIES["greedy"](wide, tokenizer, ["q"], SearchOptions())
    prompt = answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 63
    narrow = planted(completion, window=prompt + 20)
    (answer,) = STRATEGIES["greedy"](narrow, tokenizer, ["q"], SearchOptions(answer_tokens=5))
    assert answer.forced and answer.usage.completion_tokens <= 20
    with pytest.raises(ValueError, match="leaves no room for an answer"):
        STRATEGIES["greedy"](planted(completion, window=prompt), tokenizer, ["q"], SearchOptions())


def test_reasoning_effort_and_a_token_budget_exclude_each_other():
    with pytest.raises(ValueError, match="leave one of them out"):
        SearchOptions(reasoning_effort="low", max_completion_tokens=5)
    with pytest.raises(ValueError, match="'mid=9' does not"):
        SearchOptions(efforts="low=1,mid=9,high=10")


def test_a_question_cannot_open_or_close_a_thought(tiny_policy, tokenizer):
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    engine = PrefixEngine(tiny_policy, tokenizer)
    for bad in (THINK, END_THINK, tokenizer.eos_token, "<|assistant|>"):
        session = SearchSession(tiny_policy, tokenizer, [f"a {bad} b"], SearchOptions())
        assert not session.roots[0].closed
        (prompt,) = encode_prompts(tokenizer, [f"a {bad} b"])
        assert end_think_id not in prompt and engine.eos_ids.isdisjoint(prompt)


# ---- votes weighed by value ----


def test_a_high_value_temperature_makes_the_weights_of_a_vote_equal():
    cast = [("3", "a", 0.1), ("3", "b", 0.1), ("4", "c", 0.9)]
    votes = [Answer(text=text, thought=thought, value=v) for text, thought, v in cast]
    for temperature, text in ((0.0, "4"), (0.2, "4"), (10.0, "3"), (math.inf, "3")):
        assert select_by_vote(votes, value_weights(votes, temperature)).text == text
    # exp(-0.8 / t) = 1/2 at t = 0.8 / ln 2 = 1.154: there two votes of 0.1 weigh as one of 0.9.
    assert select_by_vote(votes, value_weights(votes, 1.15)).text == "4"
    assert select_by_vote(votes, value_weights(votes, 1.16)).text == "3"


def test_only_differences_between_values_matter():
    votes = [Answer(text=str(v), value=v) for v in (0.3, 0.9, 0.4)]
    for shift in (-5.0, 100.0):
        moved = value_weights([replace(vote, value=vote.value + shift) for vote in votes], 0.3)
        assert moved == pytest.approx(value_weights(votes, 0.3))


def test_repeated_completions_weigh_once():
    one, other = Answer(text="3", thought="a", value=0.5), Answer(text="4", thought="b", value=0.6)
    for twins in (1, 5):
        votes = [one] * twins + [other]
        assert select_by_vote(votes, value_weights(votes, 0.4)).text == "4"
    votes = [one, replace(one, thought="c"), other]  # two ways to the same answer are no twins
    assert select_by_vote(votes, value_weights(votes, 0.4)).text == "3"


def test_an_unfinished_sample_has_no_weight_whatever_its_value():
    cut = Answer(text="3", thought="a", value=0.9, finish_reason="length")
    votes = [
        cut,
        Answer(text="4", thought="b", value=0.2),
        Answer(text="5", thought="c", value=0.8),
    ]
    for temperature in (0.0, 0.01, 1e-4):
        weights = value_weights(votes, temperature)
        assert (weights[0], weights[2]) == (0.0, 1.0)
        assert select_by_vote(votes, weights).text == "5"
    assert value_weights([cut, cut], 0.0) == [0.0, 0.0]
    finished = replace(cut, finish_reason="stop")  # no repeat: the first one did not finish
    assert value_weights([cut, finished], 0.4) == [0.0, 1.0]


def test_a_vote_by_likelihood_compares_completions_of_any_length(monkeypatch):
    logprobs = [("7", -1700.0), ("8", -1601.0), ("8", -1600.0)]
    samples = [
        Answer(text=text, thought=str(i), notes={"logprob": logprob})
        for i, (text, logprob) in enumerate(logprobs)
    ]
    monkeypatch.setattr("pipeline.search.consensus.sample_answers", lambda *a, **k: [samples])
    (answer,) = STRATEGIES["likelihood"](None, None, ["q"], SearchOptions(n=3))
    assert (answer.text, answer.thought) == ("8", "2")


def test_a_vote_by_likelihood_sums_over_distinct_completions(planted, tokenizer):
    # One way to 1 has 0.4; three ways to 2 have 0.2 each, roots 0.63 against 3 * 0.45 = 1.34.
    paths = {f"{w}{END_THINK}2<eos>": 0.2 for w in "abc"}
    model = planted({f"x{END_THINK}1<eos>": 0.4} | paths)
    options = SearchOptions(n=32, temperature=1.0)
    (answer,) = STRATEGIES["likelihood"](model, tokenizer, ["q"], options)
    assert answer.text == "2"
    # Two ways of 0.1 against one of 0.8: 2 * 0.32 = 0.63 against 0.89, whatever was drawn.
    model = planted({f"x{END_THINK}1<eos>": 0.8} | {f"{w}{END_THINK}2<eos>": 0.1 for w in "ab"})
    (answer,) = STRATEGIES["likelihood"](model, tokenizer, ["q"], options)
    assert answer.text == "1"


def test_best_of_n_takes_the_highest_value_and_consensus_the_majority(planted, tokenizer):
    model = planted(
        {f"a{END_THINK}1<eos>": 0.7, f"b{END_THINK}2<eos>": 0.3},
        value=lambda text: 0.9 if text.startswith("b") else 0.1,
    )
    options = SearchOptions(n=16, temperature=1.0)
    found = {
        name: STRATEGIES[name](model, tokenizer, ["q"], options)[0]
        for name in ("consensus", "best_of_n", "weighted")
    }
    assert {name: answer.text for name, answer in found.items()} == {
        "consensus": "1",
        "best_of_n": "2",
        "weighted": "2",
    }
    assert len({answer.usage for answer in found.values()}) == 1  # the same samples, weighed anew
    assert found["best_of_n"].value == pytest.approx(0.9)
