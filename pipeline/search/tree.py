"""Search tree over thought steps: PUCT selection, backup, JSON and text rendering.

Statistics of a node as in AlphaZero (arXiv:1712.01815), with its own V counted as a first visit:

    Q(s)   = (V(s) + sum of backed-up values) / (1 + visits)
    select = argmax of norm(Q) + c_puct * P * sqrt(1 + visits of parent) / (1 + visits)

norm maps the smallest and largest Q of the tree to 0 and 1 (arXiv:1911.08265, appendix B), so the
selection does not depend on the scale or offset of the value head.
"""

import json
from dataclasses import dataclass, field, replace
from math import exp, sqrt
from pathlib import Path
from typing import TypedDict

from pipeline.generation.shared_prefix import PartialSequence
from pipeline.runtime import write_json

ROOT = 0
NO_PARENT = -1


@dataclass
class Node:
    """A state of the thought: the step that leads to it and its search statistics."""

    id: int
    parent: int
    text: str  # the step; the last step includes the answer
    logprob: float  # of the step under the policy
    value: float  # score of the state by the verifier, or by the value head without one
    prior: float = 1.0  # probability of the step under the policy, normalized over siblings
    visits: int = 0
    total: float = 0.0  # sum of backed-up values
    children: list[int] = field(default_factory=list)
    ended: bool = False  # no step follows: it is complete, or as long as a path may be
    sampled: int = 0  # steps sampled from here, with repeats
    answer: str = ""  # of a complete node
    virtual_visits: int = field(default=0, repr=False)  # unfinished simulations through the node
    sequence: PartialSequence | None = field(default=None, repr=False, compare=False)

    @property
    def state(self) -> PartialSequence:
        """The decoded sequence; a node read from JSON has none."""
        assert self.sequence is not None
        return self.sequence

    @property
    def mean(self) -> float:
        """Q: mean of the node's value and all backed-up values."""
        return (self.value + self.total) / (1 + self.visits)


@dataclass
class Playout:
    """An answer decoded from a node; it votes but is not a node of the tree."""

    node: int
    answer: str
    value: float
    sequence: PartialSequence | None = field(default=None, repr=False, compare=False)


class TreeJson(TypedDict):
    """A tree as JSON data: its question, and the fields of its nodes and playouts."""

    question: str
    nodes: list[dict]
    playouts: list[dict]


class Tree:
    """Nodes and playouts of the search of one question. Node i has id i; node 0 is the prompt."""

    def __init__(self, question: str, root: PartialSequence | None = None):
        self.question = question
        self.nodes: list[Node] = []
        self.playouts: list[Playout] = []
        if root is not None:
            self.add(NO_PARENT, "", 0.0, root)

    def add(
        self, parent: int, text: str, logprob: float, sequence: PartialSequence, answer: str = ""
    ) -> Node:
        """Append a node for `sequence` as the last child of `parent`."""
        node = Node(
            id=len(self.nodes),
            parent=parent,
            text=text,
            logprob=logprob,
            value=sequence.known_score,
            ended=sequence.ended,
            answer=answer,
            sequence=sequence,
        )
        self.nodes.append(node)
        if parent != NO_PARENT:
            self.nodes[parent].children.append(node.id)
        return node

    def children(self, node: Node) -> list[Node]:
        """The child nodes, in the order in which they were sampled."""
        return [self.nodes[i] for i in node.children]

    def normalize_priors(self, node: Node) -> None:
        """Set the priors of a node's children: policy probabilities normalized to sum to 1."""
        children = self.children(node)
        best = max(child.logprob for child in children)
        chances = [exp(child.logprob - best) for child in children]
        for child, chance in zip(children, chances, strict=True):
            child.prior = chance / sum(chances)

    def drop_unneeded_logits(self, node: Node) -> None:
        """Drop the logits of a node that is never expanded again, V numbers.

        Only leaves are expanded, and parents of an ended child in the child's place.
        """
        if node.children and not any(child.ended for child in self.children(node)):
            node.sequence = replace(node.state, logits_V=None)

    def select(self, c_puct: float) -> list[Node]:
        """The path from the root to a leaf by PUCT.

        An unfinished simulation counts as a visit that found the lowest Q of the tree.
        """
        low, high = self._bounds()
        path = [self.nodes[ROOT]]
        while path[-1].children:
            parent = path[-1]
            reach = c_puct * sqrt(1 + parent.visits + parent.virtual_visits)
            path.append(
                max(
                    self.children(parent),
                    key=lambda node: (
                        _min_max_scaled(_mean_with_virtual_loss(node, low), low, high)
                        + reach * node.prior / (1 + node.visits + node.virtual_visits)
                    ),
                )
            )
        return path

    def add_virtual_loss(self, path: list[Node], sign: int = 1) -> None:
        """Count an unfinished simulation along the path; sign=-1 removes it."""
        for node in path:
            node.virtual_visits += sign

    def back_up(self, path: list[Node], value: float) -> None:
        """Add a visit with this value to every node of the path."""
        for node in path:
            node.visits += 1
            node.total += value

    def best_open(self) -> Node:
        """The last node, not ended, on the path of most visited children, ties by mean value."""
        node = self.nodes[ROOT]
        while open_children := [child for child in self.children(node) if not child.ended]:
            node = max(open_children, key=lambda child: (child.visits, child.mean))
        return node

    def _bounds(self) -> tuple[float, float]:
        means = [node.mean for node in self.nodes]
        return min(means), max(means)

    def to_json(self) -> TreeJson:
        """The tree as JSON data, without token sequences."""
        nodes = [_plain(node, ("virtual_visits", "sequence")) for node in self.nodes]
        playouts = [_plain(playout, ("sequence",)) for playout in self.playouts]
        return {"question": self.question, "nodes": nodes, "playouts": playouts}

    @classmethod
    def from_json(cls, content: TreeJson) -> "Tree":
        """The tree of `to_json`; its nodes cannot be expanded further."""
        tree = cls(content["question"])
        tree.nodes = [Node(**node) for node in content["nodes"]]
        tree.playouts = [Playout(**playout) for playout in content["playouts"]]
        return tree

    def save(self, path: str | Path) -> None:
        """Write the tree to a JSON file."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Tree":
        """Read a tree from a JSON file."""
        return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.to_json() == other.to_json()


def drawing(tree: Tree) -> str:
    """The tree as text, one line per step with visits, mean value and prior.

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


def _plain(record: Node | Playout, without: tuple[str, ...]) -> dict:
    kept = {k: v for k, v in vars(record).items() if k not in without}
    return json.loads(json.dumps(kept))


def _mean_with_virtual_loss(node: Node, low: float) -> float:
    """Q of a node with each unfinished simulation counted as a visit of value `low`."""
    seen = 1 + node.visits
    return (node.mean * seen + node.virtual_visits * low) / (seen + node.virtual_visits)


def _min_max_scaled(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else (value - low) / (high - low)
