"""What a search keeps: one step per node, slots of live branches, logits of leaves, few comparisons."""  # noqa: E501

import random
import tracemalloc

import pytest
import torch

from pipeline.chat.prompts import encode_prompts
from pipeline.generation.kv_pool import KVPool
from pipeline.generation.sequence import TokenPath
from pipeline.generation.shared_prefix import DecodeRequest, PartialSequence, PrefixEngine
from pipeline.grading import same_answer
from pipeline.grading.comparison_key import comparison_key
from pipeline.grading.equivalence import final_answer
from pipeline.search import SearchOptions, clusters, consensus
from pipeline.search.mcts import answers_and_trees
from pipeline.search.session import ExpandRequest, SearchSession
from tests.test_equivalence_pairs import RIGHT_CASES, WRONG_CASES


def step(sequence: PartialSequence, *stream: int) -> DecodeRequest:
    return DecodeRequest(
        sequence=sequence, budget=20, stream=stream, temperature=1.0, max_step_tokens=4
    )


def open_steps(engine: PrefixEngine, sequence: PartialSequence, count: int) -> list:
    """`count` continuations that have not ended, each by one step."""
    grown = engine.extend([step(sequence, i) for i in range(4 * count)])
    return [s for s in grown if not s.ended][:count]


# ---- slots ----


def test_slots_of_a_dropped_branch_are_free_and_used_again(tiny_policy, tokenizer):
    engine = PrefixEngine(tiny_policy, tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, ["What is 2 + 3?"]))
    prompt = engine.pool.used
    assert prompt == root.prompt_tokens
    kept, dropped = open_steps(engine, root, 2)
    both = engine.pool.used
    assert both == prompt + kept.length + dropped.length
    del dropped
    assert engine.pool.used == prompt + kept.length
    end = engine.pool._end
    (again,) = open_steps(engine, kept, 1)
    assert engine.pool._end == end  # nothing new was needed
    slots = again.known_cached.all_slots().tolist()
    assert len(set(slots)) == len(slots) == prompt + again.length
    assert slots[: -len(again.tokens.own_ids)] == kept.known_cached.all_slots().tolist()


def test_a_child_keeps_the_slots_of_its_parents(tiny_policy, tokenizer):
    engine = PrefixEngine(tiny_policy, tokenizer)
    (sequence,) = engine.start(encode_prompts(tokenizer, ["What is 2 + 3?"]))
    prompt = sequence.prompt_tokens
    for _ in range(3):
        (sequence,) = open_steps(engine, sequence, 1)
    assert engine.pool.used == prompt + sequence.length == sequence.known_cached.length
    del sequence
    assert engine.pool.used == 0


def test_an_ended_sequence_holds_no_slots(planted, tokenizer):
    engine = PrefixEngine(planted({"ab\ncd</think>1<eos>": 1.0}), tokenizer)
    (sequence,) = engine.start(encode_prompts(tokenizer, ["q"]))
    while not sequence.ended:
        (sequence,) = engine.extend([step(sequence, 1)])
    assert tokenizer.decode(sequence.ids) == "ab\ncd</think>1<eos>"
    assert engine.pool.used == 0


def test_the_pool_takes_parts_of_freed_slots():
    pool = KVPool()
    assert pool._take(5).tolist() == [0, 1, 2, 3, 4]
    pool.free(torch.tensor([1, 2, 3]))
    assert pool.used == 2
    assert sorted(pool._take(2).tolist() + pool._take(2).tolist()) == [1, 2, 3, 5]
    assert pool.used == 6


def test_a_beam_search_needs_the_slots_of_its_live_states_only(tiny_policy, tokenizer):
    """Twelve steps of four states out of eight: the pool never holds what was pruned."""
    options = SearchOptions(max_completion_tokens=64, answer_tokens=4, step_tokens=4)
    session = SearchSession(tiny_policy, tokenizer, ["What is 2 + 3?"], options, max_paths=16)
    live, written = [session.roots[0]], 0
    for depth in range(12):
        requests = [
            ExpandRequest(q=0, sequence=state, stream=(depth, i, j))
            for i, state in enumerate(live)
            for j in range(2 if depth else 8)
        ]
        grown = [s for s in session.steps(requests) if s is not None]
        written += sum(len(s.tokens.own_ids) for s in grown)
        live = [s for s in grown if not s.ended][:4]
        del requests, grown
    pool, prompt = session.engine.pool, session.roots[0].prompt_tokens
    assert pool.used <= prompt + sum(state.length for state in live)
    assert pool._end < prompt + written  # what was pruned was written over


# ---- tokens and logits ----


def path_bytes(tokens: int, step_tokens: int = 16) -> int:
    """Memory of all states of a thought of so many tokens, in steps."""
    tracemalloc.start()
    path, states = TokenPath(), []
    for start in range(0, tokens, step_tokens):
        ids = tuple(range(1000 + start, 1000 + start + step_tokens))
        path = path.then(ids, tuple(i + 0.5 for i in ids), tuple(i + 0.25 for i in ids))
        states.append(PartialSequence(prompt_tokens=9, tokens=path))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert states[-1].length == tokens == len(states[-1].ids)
    return size


def test_the_states_of_a_thought_of_4096_tokens_take_twice_the_memory_of_2048():
    ratio = path_bytes(4096) / path_bytes(2048)
    assert ratio < 2.5  # 4 with a copy of the path in every state


def test_a_tree_stores_every_token_once_and_logits_for_expandable_nodes(tiny_policy, tokenizer):
    options = SearchOptions(
        max_completion_tokens=60,
        answer_tokens=4,
        step_tokens=5,
        simulations=12,
        branches=2,
        playouts=0,
    )
    ((_, tree),) = answers_and_trees(tiny_policy, tokenizer, ["What is 2 + 3?"], options)
    inner = [node for node in tree.nodes if node.children]
    assert len(inner) >= 4
    for node in tree.nodes:
        own = node.state.tokens
        if node.parent >= 0:
            assert own.parent is tree.nodes[node.parent].state.tokens
            assert own.length == own.parent.length + len(own.own_ids)
        ended_child = any(child.ended for child in tree.children(node))
        keeps = not node.ended and (not node.children or ended_child)
        assert (node.state.logits_V is not None) == keeps


# ---- clusters ----


@pytest.fixture
def comparisons(monkeypatch) -> list[tuple[str, str]]:
    """The pairs of answers that `clusters` compares."""
    seen: list[tuple[str, str]] = []

    def counted(answer: str, expected: str, question: str = "") -> bool:
        seen.append((answer, expected))
        return same_answer(answer, expected, question)

    monkeypatch.setattr(consensus, "same_answer", counted)
    return seen


def test_4096_different_numbers_are_grouped_without_a_comparison(comparisons):
    texts = [f"The answer is {i}." for i in range(4096)]
    assert clusters(texts) == [[i] for i in range(4096)]
    assert comparisons == []


def test_numbers_words_and_formulas_are_compared_only_where_they_may_agree(comparisons):
    texts = ["7", "7.0", "8", "Paris", "x+1", "1+x", "paris", "14/2"]
    assert clusters(texts) == [[0, 1], [3, 6], [4, 5], [2], [7]]
    # 8 and Paris have keys of their own; x+1 has none, and is compared with the three groups.
    assert ("8", "7") not in comparisons and ("Paris", "7") not in comparisons
    assert ("x+1", "7") in comparisons and ("x+1", "Paris") in comparisons


def all_pairs(texts: list[str], question: str) -> list[list[int]]:
    """The grouping with every answer compared with every group."""
    groups: list[list[int]] = []
    answers = [final_answer(text) for text in texts]
    for i, answer in enumerate(answers):
        for group in groups:
            first = answers[group[0]]
            if same_answer(answer, first, question) and same_answer(first, answer, question):
                group.append(i)
                break
        else:
            groups.append([i])
    return sorted(groups, key=lambda group: (-len(group), group[0]))


@pytest.mark.parametrize("question", ["", "What percentage of the 20 apples is red?"])
def test_the_groups_are_those_of_all_comparisons(question):
    pool = "7 7.0 $7 7% 0.07 14/2 7/1 700% x=7 7apples 8 08 eight Eight red Red x+1 1+x (1,2) {2,1}"
    rng = random.Random(3)
    texts = rng.choices(pool.split(), k=60)
    assert clusters(texts, question=question) == all_pairs(texts, question)


def test_answers_that_agree_have_equal_keys_or_one_has_none():
    keyed = 0
    for answer, expected, question in [*RIGHT_CASES, *WRONG_CASES]:
        one, other = final_answer(answer), final_answer(expected)
        keys = comparison_key(one, question), comparison_key(other, question)
        if None in keys:
            continue
        keyed += 1
        if keys[0] != keys[1]:
            both = same_answer(one, other, question) and same_answer(other, one, question)
            assert not both, (one, other, keys)
    assert keyed > 50
