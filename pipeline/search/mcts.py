"""Monte-Carlo tree search over the steps of a thought, with PPO's own value head at the leaves.

PPO-MCTS (arXiv:2309.15028) searches over tokens; here an action is a line of thought, as in
arXiv:2305.14992: sampled from the policy, its prior the policy's probability of it. A simulation is

    select    down the tree by PUCT, several leaves a question side by side under virtual loss
    expand    `branches` steps sampled from each leaf, twins merged; further ones from the parent
              of an answer that is reached again
    evaluate  V of what was reached; `playouts` of the new steps are carried on to an answer
    back up   the mean of both

The answer is a vote of all whole thoughts seen, weighed by value, or by visits: a maximum over
values would be fooled by a critic that is wrong once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import Branch
from pipeline.records import Answer
from pipeline.search.beam import last_words
from pipeline.search.consensus import elect, value_weights
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.strategy import require_temperature, require_values, samples_of
from pipeline.search.tree import Node, Playout, Tree


def mcts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The answer a tree of up to `simulations` expanded leaves votes for."""
    return [answer for answer, _ in answers_and_trees(model, tokenizer, questions, options)]


def answers_and_trees(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[tuple[Answer, Tree]]:
    """Every question's answer, and the tree it comes from."""
    require_temperature("mcts", options)
    if not questions:
        return []
    require_values("mcts", model)
    session = SearchSession(model, tokenizer, questions, options, max_paths=options.simulations)
    trees = [Tree(question, root) for question, root in zip(questions, session.roots, strict=True)]
    open_, done = set(range(len(trees))), [0] * len(trees)
    while open_:
        searches = [s for q in sorted(open_) for s in _select(q, trees[q], options, done[q])]
        _expand(session, trees, searches)
        for q in sorted(open_):
            own = [s for s in searches if s.q == q]
            for search in own:
                trees[q].reserve(search.path, -1)
                trees[q].back_up(search.path, search.value)
            done[q] += len(own)
            if done[q] >= options.simulations or any(s.broke for s in own):
                open_.discard(q)
    return [(_decide(session, q, tree), tree) for q, tree in enumerate(trees)]


@dataclass
class _Search:
    """One simulation of question q under way."""

    q: int
    path: list[Node]
    value: float
    broke: bool = False  # the budget did not pay for a step

    @property
    def leaf(self) -> Node:
        return self.path[-1]


def _select(q: int, tree: Tree, options: SearchOptions, done: int) -> list[_Search]:
    """Leaves of one tree, each another one, fewer where the tree has not so many.

    An answer that was reached before has nothing new to say: its parent gets further children.
    """
    found: list[_Search] = []
    for _ in range(min(options.leaves, options.simulations - done)):
        path = tree.select(options.c_puct)
        if path[-1].ended and path[-1].visits:
            path = path[:-1]
        if any(s.leaf is path[-1] for s in found):
            break
        tree.reserve(path)
        found.append(_Search(q, path, path[-1].value))
    return found


def _expand(session: SearchSession, trees: list[Tree], searches: list[_Search]) -> None:
    """Children and playouts of every leaf that has not ended; its value becomes what they show."""
    each = session.options.branches
    growing = [s for s in searches if not s.leaf.ended]
    requests = [
        ExpandRequest(q=s.q, branch=s.leaf.branch, stream=(3, s.leaf.id, s.leaf.sampled + i))
        for s in growing
        for i in range(each)
    ]
    steps = session.steps(requests)
    carried: list[tuple[_Search, Node]] = []
    for k, search in enumerate(growing):
        of_leaf = steps[k * each : (k + 1) * each]
        search.broke = None in of_leaf
        search.leaf.sampled += each
        added = _add(session, trees[search.q], search.leaf, [b for b in of_leaf if b])
        children = trees[search.q].children(search.leaf)
        if children:
            search.value = sum(c.prior * c.value for c in children)
        # The first ones sampled are a fair draw of the policy.
        carried += [(search, c) for c in added[: session.options.playouts] if not c.ended]
    _play_out(session, trees, carried)


def _add(session: SearchSession, tree: Tree, leaf: Node, branches: list[Branch]) -> list[Node]:
    """What is new among the branches, as children of the leaf."""
    start = len(leaf.branch.ids)
    known = {child.branch.ids for child in tree.children(leaf)}
    added = []
    for branch in branches:
        if branch.ids in known:
            continue
        known.add(branch.ids)
        answer = session.answer(0, branch).text if branch.ended else ""
        text, logprob = session.text(branch.ids[start:]), math.fsum(branch.logprobs[start:])
        added.append(tree.add(leaf.id, text, logprob, branch, answer))
    if added:
        tree.share_priors(leaf)
    return added


def _play_out(
    session: SearchSession, trees: list[Tree], carried: list[tuple[_Search, Node]]
) -> None:
    requests = [
        ExpandRequest(q=search.q, branch=child.branch, stream=(4, child.id))
        for search, child in carried
    ]
    ends: dict[int, list[float]] = {}
    for (search, child), branch in zip(carried, session.finish(requests), strict=True):
        if branch is None:
            search.broke = True
            continue
        answer = session.answer(search.q, branch)
        trees[search.q].playouts.append(Playout(child.id, answer.text, branch.score, branch))
        ends.setdefault(id(search), []).append(branch.score)
    for search, _ in carried:
        if values := ends.pop(id(search), None):
            search.value = (search.value + sum(values)) / (1 + len(values))


def _decide(session: SearchSession, q: int, tree: Tree) -> Answer:
    options = session.options
    nodes = [node for node in tree.nodes if node.ended]
    branches = [node.branch for node in nodes] + [p.branch for p in tree.playouts]
    visits = [1.0 + node.visits for node in nodes] + [1.0] * len(tree.playouts)
    notes = {"nodes": len(tree.nodes), "simulations": tree.nodes[0].visits}
    if not branches:
        branches, visits = last_words(session, q, [tree.best_open().branch]), [1.0]
    samples = samples_of(session, q, branches)
    votes = value_weights(samples, options.value_temperature)
    weights = votes if options.choose == "votes" else visits
    won = elect(samples, weights, session.questions[q])
    return session.with_total_usage(q, won, **notes)
