"""The tree of a search over thought steps: selection, backup, JSON, a drawing.

Statistics of a node, as AlphaZero keeps them (arXiv:1712.01815), with its own V as a first visit:

    Q(s)   = (V(s) + sum of backed-up values) / (1 + visits)
    select = argmax of norm(Q) + c_puct * P * sqrt(visits of parent) / (1 + visits)

norm maps the smallest and largest Q of the tree to 0 and 1 (arXiv:1911.08265, appendix B), so that
neither the scale nor the offset of the value head matters.
"""

import json
from dataclasses import dataclass, field
from math import exp, sqrt
from pathlib import Path
from typing import Any

from pipeline.generation.shared_prefix import Branch
from pipeline.runtime import write_json

ROOT = 0
NO_PARENT = -1


@dataclass
class Node:
    """A state of the thought: the step that leads to it, and what the search knows about it."""

    id: int
    parent: int
    text: str  # the step; with the last one comes the answer
    logprob: float  # of the step, by the policy
    value: float  # what the critic makes of the state
    prior: float = 1.0  # the policy's probability of the step among its siblings
    visits: int = 0
    total: float = 0.0  # of the values that were backed up through it
    children: list[int] = field(default_factory=list)
    ended: bool = False
    sampled: int = 0  # steps sampled from here, twins among them
    answer: str = ""  # where the node has ended
    virtual: int = field(default=0, repr=False)  # searches under way below it
    branch: Branch | None = field(default=None, repr=False, compare=False)

    @property
    def mean(self) -> float:
        return (self.value + self.total) / (1 + self.visits)


@dataclass
class Playout:
    """A whole answer sampled from a node; a vote, and no part of the tree."""

    node: int
    answer: str
    value: float
    branch: Branch | None = field(default=None, repr=False, compare=False)


class Tree:
    """All that a search has seen of one question. Node i has id i; node 0 is the prompt."""

    def __init__(self, question: str, root: Branch | None = None):
        self.question = question
        self.nodes: list[Node] = []
        self.playouts: list[Playout] = []
        if root is not None:
            self.add(NO_PARENT, "", 0.0, root)

    def add(self, parent: int, text: str, logprob: float, branch: Branch, answer: str = "") -> Node:
        node = Node(
            id=len(self.nodes),
            parent=parent,
            text=text,
            logprob=logprob,
            value=branch.score,
            ended=branch.ended,
            answer=answer,
            branch=branch,
        )
        self.nodes.append(node)
        if parent != NO_PARENT:
            self.nodes[parent].children.append(node.id)
        return node

    def children(self, node: Node) -> list[Node]:
        return [self.nodes[i] for i in node.children]

    def share_priors(self, node: Node) -> None:
        """The policy's probabilities of a node's children, made to sum to 1."""
        children = self.children(node)
        best = max(child.logprob for child in children)
        chances = [exp(child.logprob - best) for child in children]
        for child, chance in zip(children, chances, strict=True):
            child.prior = chance / sum(chances)

    def select(self, c_puct: float) -> list[Node]:
        """The way from the root to a state without children, by PUCT; searches under way count as
        visits that found the worst."""
        low, high = self._bounds()
        path = [self.nodes[ROOT]]
        while path[-1].children:
            parent = path[-1]
            reach = c_puct * sqrt(1 + parent.visits + parent.virtual)
            path.append(
                max(
                    self.children(parent),
                    key=lambda node: (
                        _scaled(_pessimistic(node, low), low, high)
                        + reach * node.prior / (1 + node.visits + node.virtual)
                    ),
                )
            )
        return path

    def reserve(self, path: list[Node], sign: int = 1) -> None:
        """Mark a search as under way along the path (virtual loss); sign -1 takes it back."""
        for node in path:
            node.virtual += sign

    def back_up(self, path: list[Node], value: float) -> None:
        for node in path:
            node.visits += 1
            node.total += value

    def best_open(self) -> Node:
        """Where to go on when no answer was found: down the most visited children, the better mean
        among equals."""
        node = self.nodes[ROOT]
        while node.children:
            node = max(self.children(node), key=lambda child: (child.visits, child.mean))
        return node

    def _bounds(self) -> tuple[float, float]:
        means = [node.mean for node in self.nodes]
        return min(means), max(means)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without keys and values of the model."""
        nodes = [_plain(node, ("virtual", "branch")) for node in self.nodes]
        playouts = [_plain(playout, ("branch",)) for playout in self.playouts]
        return {"question": self.question, "nodes": nodes, "playouts": playouts}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tree":
        tree = cls(content["question"])
        tree.nodes = [Node(**node) for node in content["nodes"]]
        tree.playouts = [Playout(**playout) for playout in content["playouts"]]
        return tree

    def save(self, path: str | Path) -> None:
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tree":
        return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.to_json() == other.to_json()


def drawing(tree: Tree) -> str:
    """The tree as lines of text: visits, mean value and prior before every step.

    >>> tree = Tree("1+1+1?")
    >>> tree.nodes = [
    ...     Node(0, -1, "", 0.0, 0.5, visits=3, total=1.5, children=[1, 2]),
    ...     Node(1, 0, "1+1=2", -0.1, 0.7, prior=0.9, visits=2, total=1.1),
    ...     Node(2, 0, "1+1=3", -2.3, 0.2, prior=0.1),
    ... ]
    >>> print(drawing(tree))
    1+1+1?  (3 visits, mean 0.50)
    ├─ 2x 0.60 p=0.90  1+1=2
    └─ 0x 0.20 p=0.10  1+1=3
    """
    root = tree.nodes[ROOT]
    lines = [f"{tree.question}  ({root.visits} visits, mean {root.mean:.2f})"]
    _draw(tree, root, "", lines)
    return "\n".join(lines)


def _draw(tree: Tree, parent: Node, indent: str, lines: list[str]) -> None:
    children = sorted(tree.children(parent), key=lambda node: -node.visits)
    for child in children:
        last = child is children[-1]
        text = " ".join(child.text.split())
        lines.append(
            f"{indent}{'└─' if last else '├─'} {child.visits}x {child.mean:.2f} "
            f"p={child.prior:.2f}  {text}"
        )
        _draw(tree, child, indent + ("   " if last else "│  "), lines)


def _plain(record: Any, without: tuple[str, ...]) -> dict[str, Any]:
    kept = {k: v for k, v in vars(record).items() if k not in without}
    return json.loads(json.dumps(kept))


def _pessimistic(node: Node, low: float) -> float:
    """The mean of a node, each search under way counted as a visit that found the worst."""
    seen = 1 + node.visits
    return (node.mean * seen + node.virtual * low) / (seen + node.virtual)


def _scaled(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else (value - low) / (high - low)
