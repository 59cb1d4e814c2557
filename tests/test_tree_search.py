"""Searches over steps, on hand-made policies and values whose best answer is known."""

import math
import random
from dataclasses import replace

import pytest

from pipeline.chat.tags import END_THINK
from pipeline.records import Answer
from pipeline.search import STRATEGIES, SearchOptions
from pipeline.search.adaptive import initial_thought_limit, majority_probability, vote_is_settled
from pipeline.search.consensus import clusters
from pipeline.search.mcts import answers_and_trees
from pipeline.search.tree import Node, Tree, drawing

# The policy prefers a, whose value is high after one step but whose answer is wrong.
TRAP = {
    f"a\nx\n{END_THINK}1<eos>": 0.6,
    f"a\ny\n{END_THINK}1<eos>": 0.2,
    f"b\nz\n{END_THINK}2<eos>": 0.2,
}


def trap_value(text: str) -> float:
    first, _, rest = text.partition("\n")
    if not rest:
        return {"": 0.5, "a": 0.8, "b": 0.6}.get(first, 0.5)
    return 0.9 if first == "b" else 0.05


def options(**changes) -> SearchOptions:
    return SearchOptions(**{"temperature": 1.0, "step_tokens": 20, "answer_tokens": 4} | changes)


# ---- the tree ----


def tree_by_hand() -> Tree:
    tree = Tree("q")
    tree.nodes = [
        Node(0, -1, "", 0.0, 0.5, visits=3, total=1.2, children=[1, 2]),
        Node(1, 0, "a", -0.1, 0.8, prior=0.9, visits=2, total=0.2),
        Node(2, 0, "b", -2.3, 0.6, prior=0.1),
    ]
    return tree


def test_puct_by_hand():
    tree = tree_by_hand()
    # Q: root 1.7 / 4 = 0.425, a 1.0 / 3 = 1/3, b 0.6; scaled to [1/3, 0.6]: a 0, b 1.
    # U: c * sqrt(1 + 3) * prior / (1 + visits): a c * 0.6, b c * 0.2. Even at c = 2.5.
    assert tree.select(c_puct=2.4)[-1].text == "b"
    assert tree.select(c_puct=2.6)[-1].text == "a"


def test_virtual_loss_sends_the_next_simulation_to_another_leaf():
    tree = tree_by_hand()
    path = tree.select(c_puct=0.0)
    assert path[-1].text == "b"
    tree.add_virtual_loss(path)
    # b as if visited once more, finding the worst, 1/3: (0.6 + 1/3) / 2 = 0.467, still the best.
    assert tree.select(c_puct=0.0)[-1].text == "b"
    tree.nodes[1].total = 1.1  # Q of a: 1.9 / 3 = 0.633
    tree.nodes[2].value = 0.7  # Q of b 0.7; with the search under way (0.7 + 0.425) / 2 = 0.5625
    assert tree.select(c_puct=0.0)[-1].text == "a"
    tree.add_virtual_loss(path, -1)
    assert tree.select(c_puct=0.0)[-1].text == "b"


def test_selection_does_not_depend_on_scale_or_offset_of_the_values():
    for scale, offset in ((1.0, 0.0), (100.0, -7.0), (1e-3, 5.0)):
        tree = tree_by_hand()
        for node in tree.nodes:
            node.value = scale * node.value + offset
            node.total = scale * node.total + offset * node.visits
        assert tree.select(c_puct=2.4)[-1].text == "b"
        assert tree.select(c_puct=2.6)[-1].text == "a"


def test_priors_are_the_policy_probabilities_normalized_over_siblings():
    tree = tree_by_hand()
    tree.nodes[1].logprob, tree.nodes[2].logprob = math.log(0.06), math.log(0.02)
    tree.normalize_priors(tree.nodes[0])
    assert [node.prior for node in tree.nodes[1:]] == pytest.approx([0.75, 0.25])


def test_a_saved_tree_loads_unchanged(tmp_path, planted, tokenizer):
    model = planted(TRAP, trap_value)
    ((_, tree),) = answers_and_trees(model, tokenizer, ["q"], options(simulations=6))
    tree.save(tmp_path / "tree.json")
    again = Tree.load(tmp_path / "tree.json")
    assert again == tree and drawing(again) == drawing(tree)
    assert len(tree.nodes) > 3 and tree.playouts
    again.nodes[1].visits += 1
    assert again != tree


# ---- monte-carlo tree search ----


@pytest.mark.parametrize("playouts", [0, 1])
@pytest.mark.parametrize("choose", ["votes", "visits"])
def test_tree_search_abandons_a_step_of_high_value_that_leads_to_a_wrong_answer(
    planted, tokenizer, playouts, choose
):
    model = planted(TRAP, trap_value)
    settings = options(
        simulations=24, branches=6, c_puct=0.5, playouts=playouts, choose=choose, leaves=2
    )
    ((answer, tree),) = answers_and_trees(model, tokenizer, ["q"], settings)
    assert answer.text == "2"
    a, b = sorted(tree.children(tree.nodes[0]), key=lambda node: node.text)
    assert (a.text, b.text) == ("a\n", "b\n")
    assert b.visits > a.visits and b.mean > a.mean


def test_visits_add_up_and_no_virtual_loss_remains(planted, tokenizer):
    model = planted(TRAP, trap_value)
    ((_, tree),) = answers_and_trees(model, tokenizer, ["q"], options(simulations=9, leaves=3))
    assert tree.nodes[0].visits == 9
    for node in tree.nodes:
        assert node.virtual_visits == 0
        # Every visit that did not descend to a child sampled steps here.
        below = sum(child.visits for child in tree.children(node))
        if not node.ended:
            assert node.visits - below == node.sampled // options().branches


def test_the_value_of_a_node_is_the_mean_of_the_backed_up_values(planted, tokenizer):
    # A single path: V is 0.5 at the root, 0.8 after a, and 0.2 before the end token.
    model = planted(
        {f"a\n{END_THINK}1<eos>": 1.0},
        lambda text: {"": 0.5, "a\n": 0.8}.get(text, 0.2),
    )
    settings = options(simulations=2, leaves=1, branches=2, playouts=0)
    ((answer, tree),) = answers_and_trees(model, tokenizer, ["q"], settings)
    # Simulation 1 expands the root: its one child is worth 0.8. Simulation 2 expands that: 0.2.
    assert tree.nodes[0].mean == pytest.approx((0.5 + 0.8 + 0.2) / 3)
    assert tree.nodes[1].mean == pytest.approx((0.8 + 0.2) / 2)
    assert (answer.text, len(tree.nodes)) == ("1", 3)
    settings = options(simulations=1, leaves=1, branches=2, playouts=1)
    ((_, tree),) = answers_and_trees(model, tokenizer, ["q"], settings)
    # With a playout: the mean of the child's 0.8 and the 0.2 of its answer.
    assert tree.nodes[0].mean == pytest.approx((0.5 + (0.8 + 0.2) / 2) / 2)


def test_without_a_completed_thought_the_best_state_is_decoded_to_an_answer(planted, tokenizer):
    # Wherever the thought is closed, the answer is 7; otherwise it is 60 tokens long.
    cut = {f"{('a' + chr(10)) * 30}"[:k] + f"{END_THINK}7<eos>": 1e-9 for k in range(60)}
    model = planted({"a\n" * 30 + f"{END_THINK}1<eos>": 1.0} | cut, lambda text: 0.5)
    settings = options(
        simulations=1, playouts=0, branches=1, max_completion_tokens=40, step_tokens=5
    )
    (answer,) = STRATEGIES["mcts"](model, tokenizer, ["q"], settings)
    assert (answer.text, answer.forced) == ("7", True)
    assert answer.usage.completion_tokens <= 40


def test_a_tree_without_new_steps_stops_after_its_simulations(planted, tokenizer):
    model = planted({f"a{END_THINK}1<eos>": 1.0}, lambda text: 0.5)
    settings = options(simulations=5, max_completion_tokens=10_000)
    (answer,) = STRATEGIES["mcts"](model, tokenizer, ["q"], settings)
    assert answer.text == "1" and answer.notes["simulations"] == 5


# Two steps of 6 tokens and an answer of 3; no budget below is used up by them.
SHORT = {f"{a}+1=2\n{b}+2=4\n{END_THINK}{a}<eos>": 0.1 for a in "aceg" for b in "xyz"}


def test_a_total_that_is_not_used_up_does_not_change_a_tree_search(planted, tokenizer):
    model = planted(SHORT, lambda text: 0.5)
    trees = []
    for total in (None, 8192, 2000):
        settings = SearchOptions(simulations=12, temperature=1.0, max_completion_tokens=total)
        ((answer, tree),) = answers_and_trees(model, tokenizer, ["q"], settings)
        assert answer.notes["simulations"] == tree.nodes[0].visits == 12
        trees.append(tree)
    assert trees[0] == trees[1] == trees[2]


def test_a_branch_as_long_as_a_path_may_be_does_not_end_a_tree_search(planted, tokenizer):
    completions = {f"{'a' * 60}{END_THINK}1<eos>": 0.5, f"b\n{END_THINK}2<eos>": 0.5}
    model = planted(completions, lambda text: 0.9 if text.startswith("a") else 0.1)
    settings = options(simulations=10, playouts=0, answer_tokens=0, max_sample_tokens=30)
    ((answer, tree),) = answers_and_trees(model, tokenizer, ["q"], settings)
    cut = [node for node in tree.nodes if node.ended and not node.answer]
    assert [node.state.length for node in cut] == [30]
    assert (answer.text, answer.notes["votes"], tree.nodes[0].visits) == ("2", [1], 10)


# ---- step beam ----


def test_a_total_that_is_not_used_up_does_not_change_a_beam(planted, tokenizer):
    model = planted(SHORT, lambda text: 0.5)
    free = SearchOptions(temperature=1.0)
    tight = replace(free, max_completion_tokens=600, max_sample_tokens=256)
    one, other = (STRATEGIES["beam"](model, tokenizer, ["q"], each)[0] for each in (free, tight))
    assert one == other


def test_a_wider_beam_keeps_the_correct_state(planted, tokenizer):
    model = planted(TRAP, trap_value)
    narrow = options(width=1, branches=16)
    wide = options(width=2, branches=8)
    answers = {w.width: STRATEGIES["beam"](model, tokenizer, ["q"], w)[0] for w in (narrow, wide)}
    assert answers[1].text == "1"  # a looks better after one step, and b is gone
    assert answers[2].text == "2"


# ---- self-correction ----


def test_a_step_is_rewound_when_the_value_falls_sharply(planted, tokenizer):
    model = planted(
        {f"a\n{END_THINK}1<eos>": 0.7, f"b\n{END_THINK}2<eos>": 0.3},
        lambda text: 0.1 if text.startswith("a") else 0.5,
    )
    for fall, text in ((0.3, "2"), (0.5, "1")):
        settings = options(fall=fall, retries=30)
        (answer,) = STRATEGIES["revise"](model, tokenizer, ["q"], settings)
        assert answer.text == text
        assert (answer.notes["rewinds"] > 0) == (text == "2")


def test_a_wrong_equation_is_rewound_at_most_retries_times(planted, tokenizer):
    model = planted(
        {f"1+1=3\n{END_THINK}3<eos>": 0.7, f"1+1=2\n{END_THINK}2<eos>": 0.3},
    )
    (answer,) = STRATEGIES["calculator"](model, tokenizer, ["q"], options(retries=30))
    assert (answer.text, answer.thought) == ("2", "1+1=2")
    hopeless = planted({f"1+1=3\n{END_THINK}3<eos>": 1.0})
    (answer,) = STRATEGIES["calculator"](hopeless, tokenizer, ["q"], options(retries=3))
    assert (answer.text, answer.notes["rewinds"]) == ("3", 3)
    assert answer.usage.completion_tokens == 4 * 6 + 3  # four attempts at the step, one answer


def test_a_random_cut_is_drawn_anew_for_every_question_with_the_same_thought(planted, tokenizer):
    model = planted({f"1+1=2\n{END_THINK}2<eos>": 1.0})
    questions = [f"question {i}" for i in range(40)]
    answers = STRATEGIES["random_cut"](model, tokenizer, questions, options(retries=1))
    rewound = sum(answer.notes["rewinds"] for answer in answers)
    assert 10 < rewound < 40  # 30 expected: each of two steps is cut with probability 1/2
    again = STRATEGIES["random_cut"](model, tokenizer, questions[::-1], options(retries=1))
    assert [a.notes["rewinds"] for a in again[::-1]] == [a.notes["rewinds"] for a in answers]


def test_without_retries_every_correction_strategy_gives_the_greedy_answer(tiny_policy, tokenizer):
    settings = options(retries=0, max_completion_tokens=60)
    questions = ["What is 12 + 7?", "5"]
    greedy = STRATEGIES["greedy"](tiny_policy, tokenizer, questions, settings)
    for name in ("revise", "calculator", "random_cut"):
        answers = STRATEGIES[name](tiny_policy, tokenizer, questions, settings)
        assert [a.text for a in answers] == [a.text for a in greedy]


def test_self_corrections_written_by_the_model_are_counted(planted, tokenizer):
    model = planted({f"1+1=3\n1+1=2\n2+2=4\n2+2=4\n{END_THINK}4<eos>": 1.0}, lambda text: 0.5)
    (answer,) = STRATEGIES["revise"](model, tokenizer, ["q"], options())
    assert answer.notes["own_revisions"] == 1  # 1+1 has two different results


# ---- adaptive ----


def _votes(answers: list[str]) -> list[int]:
    return [len(group) for group in clusters(answers)]


def test_a_settled_vote_never_changes_its_winner():
    """On random votes with posterior 1: the remaining votes do not change the winner."""
    rng = random.Random(0)
    stopped = 0
    for _ in range(400):
        n, kinds = rng.randint(1, 15), rng.randint(1, 4)
        ballots = [str(rng.choice(range(kinds))) for _ in range(n)]
        for drawn in range(1, n + 1):
            if vote_is_settled(_votes(ballots[:drawn]), n - drawn, posterior=1.0):
                break
        stopped += drawn < n
        early, full = clusters(ballots[:drawn])[0], clusters(ballots)[0]
        assert ballots[early[0]] == ballots[full[0]]
    assert stopped > 100


def test_an_adaptive_vote_with_posterior_one_equals_the_full_vote(planted, tokenizer):
    shares = {"1": 0.5, "2": 0.35, "3": 0.15}
    completions = {f"a{END_THINK}{text}<eos>": share for text, share in shares.items()}
    model = planted(completions)
    spent = {"adaptive": 0, "consensus": 0}
    for seed in range(20):
        settings = options(n=9, seed=seed, posterior=1.0, max_sample_tokens=16)
        answers = {name: STRATEGIES[name](model, tokenizer, ["q"], settings)[0] for name in spent}
        assert answers["adaptive"].text == answers["consensus"].text
        for name in spent:
            spent[name] += answers[name].usage.completion_tokens
    assert spent["adaptive"] < spent["consensus"]


def test_at_posterior_one_no_number_of_equal_votes_is_enough():
    assert majority_probability(64, 0) == 1.0  # rounded from 1 - 2**-65
    assert not vote_is_settled([64], rest=64, posterior=1.0)
    assert vote_is_settled([64], rest=63, posterior=1.0)


def test_without_a_value_head_an_answer_after_a_closed_thought_votes_as_in_consensus(
    planted, tokenizer
):
    model = planted(
        {
            f"{'a' * 30}{END_THINK}1<eos>": 0.7,
            f"b{END_THINK}2<eos>": 0.3,
            f"{'a' * 11}{END_THINK}7<eos>": 1e-9,
        }
    )
    settings = options(n=9, max_sample_tokens=16, posterior=1.0)  # 11 of them for a thought
    adaptive, vote = (
        STRATEGIES[s](model, tokenizer, ["q"], settings)[0] for s in ("adaptive", "consensus")
    )
    assert adaptive.text == vote.text == "7"


def test_the_posterior_equals_the_integral_of_the_beta_density():
    steps = 20_000
    for a, b in ((0, 0), (3, 1), (5, 5), (9, 2)):
        grid = [(i + 0.5) / steps for i in range(steps)]
        density = [x**a * (1 - x) ** b for x in grid]
        above = sum(d for x, d in zip(grid, density, strict=True) if x > 0.5)
        assert majority_probability(a, b) == pytest.approx(above / sum(density), abs=1e-4)


def test_an_adaptive_vote_stops_at_a_sure_value_and_samples_more_in_doubt(planted, tokenizer):
    completions = {f"a{END_THINK}1<eos>": 0.6, f"b{END_THINK}2<eos>": 0.4}
    spent = {}
    for value in (0.95, 0.2):
        model = planted(completions, lambda text, value=value: value)
        settings = options(n=16, max_sample_tokens=40)
        (answer,) = STRATEGIES["adaptive"](model, tokenizer, ["q"], settings)
        spent[value] = answer.notes["samples"]
    assert spent[0.95] == 1 and spent[0.2] > 2


def test_an_adaptive_vote_weighs_votes_by_value(planted, tokenizer):
    model = planted(
        {f"a{END_THINK}1<eos>": 0.7, f"b{END_THINK}2<eos>": 0.3},
        lambda text: 0.9 if text.startswith("b") else 0.1,
    )
    for seed in range(5):
        settings = options(n=64, max_sample_tokens=20, posterior=1.0, seed=seed)
        (answer,) = STRATEGIES["adaptive"](model, tokenizer, ["q"], settings)
        assert answer.text == "2" and answer.notes["samples"] < 64


def test_the_limit_of_a_thought_grows_after_it_was_reached(planted, tokenizer):
    text = f"{'a' * 30}{END_THINK}1<eos>"
    model = planted({text: 1.0, f"aaaa{END_THINK}7<eos>": 1e-9}, lambda text: 0.8)
    assert initial_thought_limit(64, 0.8) == 16
    settings = options(n=8, max_sample_tokens=64, posterior=1.0)
    (answer,) = STRATEGIES["adaptive"](model, tokenizer, ["q"], settings)
    assert answer.text == "1" and not answer.forced


def test_an_adaptive_vote_takes_forced_answers_if_no_other_sample_has_finished(planted, tokenizer):
    long = {f"{'a' * 30}{END_THINK}1<eos>": 0.5, f"b{END_THINK}{'c' * 40}<eos>": 0.5}
    model = planted(long | {f"{'a' * 11}{END_THINK}7<eos>": 1e-9})
    settings = options(n=8, max_sample_tokens=16)  # 11 of them for a thought
    (answer,) = STRATEGIES["adaptive"](model, tokenizer, ["q"], settings)
    assert (answer.text, answer.finish_reason, answer.forced) == ("7", "stop", True)


def test_the_usage_of_an_adaptive_vote_without_votes_is_counted(planted, tokenizer):
    model = planted({"abcdefghijklmnop": 1.0}, lambda text: 0.5)
    settings = options(n=4, answer_tokens=0, max_completion_tokens=12, max_sample_tokens=6)
    (answer,) = STRATEGIES["adaptive"](model, tokenizer, ["q"], settings)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason) == ("", "length")
    assert 0 < answer.usage.completion_tokens <= 12
