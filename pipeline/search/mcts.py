"""Monte Carlo tree search over steps of a thought, evaluated by PPO's value head.

PPO-MCTS (arXiv:2309.15028) searches over tokens; here an action is a line of thought, as in
arXiv:2305.14992, sampled from the policy, with the policy's probability as prior. A simulation:

    select    descend by PUCT; several leaves per question in parallel, with virtual loss
    expand    sample `branches` steps from the leaf and merge equal ones; a completed answer that is
              reached again is replaced by its parent, which gets further children
    evaluate  V of the new states; `playouts` of the new steps are decoded to an answer
    back up   the mean of both along the path

The answer is a vote of all completed thoughts, weighted by value or by visits: the maximum of V
would select the errors of the value head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import PartialSequence
from pipeline.records import Answer
from pipeline.search.beam import finish_best
from pipeline.search.consensus import select_by_vote, value_weights
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
    """The vote of a tree search with `simulations` expanded leaves per question."""
    return [answer for answer, _ in answers_and_trees(model, tokenizer, questions, options)]


def answers_and_trees(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[tuple[Answer, Tree]]:
    """For each question the answer and its search tree."""
    require_temperature("mcts", options)
    if not questions:
        return []
    require_values("mcts", model)
    session = SearchSession(model, tokenizer, questions, options, max_paths=options.simulations)
    trees = [Tree(*pair) for pair in zip(session.questions, session.roots, strict=True)]
    open_, done = set(range(len(trees))), [0] * len(trees)
    while open_:
        simulations = [s for q in sorted(open_) for s in _select(q, trees[q], options, done[q])]
        _expand(session, trees, simulations)
        for q in sorted(open_):
            own = [s for s in simulations if s.q == q]
            for simulation in own:
                trees[q].add_virtual_loss(simulation.path, -1)
                trees[q].back_up(simulation.path, simulation.value)
            done[q] += len(own)
            if done[q] >= options.simulations or any(s.budget_exhausted for s in own):
                open_.discard(q)
    return [(_answer(session, q, tree), tree) for q, tree in enumerate(trees)]


@dataclass
class _Simulation:
    """One simulation of question q."""

    q: int
    path: list[Node]
    value: float
    budget_exhausted: bool = False  # the rest did not cover a step or playout

    @property
    def leaf(self) -> Node:
        """The last node of the path."""
        return self.path[-1]


def _select(q: int, tree: Tree, options: SearchOptions, done: int) -> list[_Simulation]:
    """Up to `leaves` distinct leaves of one tree, selected with virtual loss.

    In place of a completed answer that was visited before, its parent is selected.
    """
    found: list[_Simulation] = []
    for _ in range(min(options.leaves, options.simulations - done)):
        path = tree.select(options.c_puct)
        if path[-1].ended and path[-1].visits:
            path = path[:-1]
        if any(s.leaf is path[-1] for s in found):
            break
        tree.add_virtual_loss(path)
        found.append(_Simulation(q, path, path[-1].value))
    return found


def _expand(session: SearchSession, trees: list[Tree], simulations: list[_Simulation]) -> None:
    """Add children and playouts to every open leaf and set the value to back up."""
    each = session.options.branches
    growing = [s for s in simulations if not s.leaf.ended]
    requests = [
        ExpandRequest(q=s.q, sequence=s.leaf.state, stream=(3, s.leaf.id, s.leaf.sampled + i))
        for s in growing
        for i in range(each)
    ]
    steps = session.steps(requests)
    played_out: list[tuple[_Simulation, Node]] = []
    for k, simulation in enumerate(growing):
        of_leaf = steps[k * each : (k + 1) * each]
        simulation.budget_exhausted = None in of_leaf
        simulation.leaf.sampled += each
        added = _add(session, trees[simulation.q], simulation, [b for b in of_leaf if b])
        children = trees[simulation.q].children(simulation.leaf)
        if children:
            simulation.value = sum(c.prior * c.value for c in children)
        # The first children in order of sampling are an unbiased sample of the policy.
        played_out += [(simulation, c) for c in added[: session.options.playouts] if not c.ended]
    _run_playouts(session, trees, played_out)


def _add(
    session: SearchSession, tree: Tree, simulation: _Simulation, sequences: list[PartialSequence]
) -> list[Node]:
    """Add the sequences as children of the leaf, without repeats; returns the new nodes."""
    leaf, path_limit = simulation.leaf, session.budgets[simulation.q].path
    known = {child.state.tokens.own_ids for child in tree.children(leaf)}
    added = []
    for sequence in sequences:
        step = sequence.tokens
        if step.own_ids in known:
            continue
        known.add(step.own_ids)
        answer = session.answer(0, sequence).text if sequence.ended else ""
        text, logprob = session.text(step.own_ids), math.fsum(step.own_logprobs)
        node = tree.add(leaf.id, text, logprob, sequence, answer)
        node.ended |= sequence.length >= path_limit
        added.append(node)
    if added:
        tree.normalize_priors(leaf)
        tree.drop_unneeded_logits(leaf)
    return added


def _run_playouts(
    session: SearchSession, trees: list[Tree], played_out: list[tuple[_Simulation, Node]]
) -> None:
    """Decode the nodes to their answers; average the scores into the simulations' values."""
    requests = [
        ExpandRequest(q=simulation.q, sequence=child.state, stream=(4, child.id))
        for simulation, child in played_out
    ]
    ends: dict[int, list[float]] = {}
    for (simulation, child), sequence in zip(played_out, session.finish(requests), strict=True):
        if sequence is None:
            simulation.budget_exhausted = True
            continue
        answer = session.answer(simulation.q, sequence)
        score = sequence.known_score
        trees[simulation.q].playouts.append(Playout(child.id, answer.text, score, sequence))
        ends.setdefault(id(simulation), []).append(score)
    for simulation, _ in played_out:
        if values := ends.pop(id(simulation), None):
            simulation.value = (simulation.value + sum(values)) / (1 + len(values))


def _answer(session: SearchSession, q: int, tree: Tree) -> Answer:
    """The vote of all completed sequences of the tree, weighted as `options.choose` says."""
    options = session.options
    nodes = [node for node in tree.nodes if node.state.ended]
    decoded = [node.sequence for node in nodes] + [p.sequence for p in tree.playouts]
    sequences = [sequence for sequence in decoded if sequence is not None]
    visits = [1.0 + node.visits for node in nodes] + [1.0] * len(tree.playouts)
    notes = {"nodes": len(tree.nodes), "simulations": tree.nodes[0].visits}
    if not sequences:
        sequences, visits = finish_best(session, q, [tree.best_open().state]), [1.0]
    samples = samples_of(session, q, sequences)
    votes = value_weights(samples, options.value_temperature)
    weights = votes if options.choose == "votes" else visits
    won = select_by_vote(samples, weights, session.questions[q])
    return session.with_total_usage(q, won, **notes)
