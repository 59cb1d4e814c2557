"""Generated word problems: a person has a number of things, which events change.

Events are drawn until their arithmetic has n steps. Each event adds one sentence to the question
and one or two equations to the chain; the answer is the last result.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.decomposed import Chain

LIMIT = 150  # largest count after any event
NAMES = "Ann Ben Carla Dan Eva Finn Gina Hugo Ida Jack Kim Leo Mia Nora Omar Pia Raj Sam Tom Zoe"
THINGS = (
    "apples books cards coins cookies eggs flowers marbles nuts pencils pens plums shells stamps "
    "stickers stones"
)
BOXES = "bags boxes packs jars"
ORDINALS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}
TIMES = {2: "doubles", 3: "triples"}


@dataclass(frozen=True)
class Scene:
    """The two persons, the things, and the current count."""

    who: str
    other: str
    things: str
    count: int


Event = tuple[str, Chain, int]  # sentence, steps, new count


def word_problem(rng: random.Random, steps: int) -> tuple[str, Chain]:
    """(question, chain) of a word problem with exactly `steps` steps."""
    while True:
        who, other = rng.sample(NAMES.split(), 2)
        scene = Scene(who, other, rng.choice(THINGS.split()), rng.randint(3, 60))
        problem = _generate(rng, scene, steps)
        if problem is not None:
            return problem


def _generate(rng: random.Random, scene: Scene, steps: int) -> tuple[str, Chain] | None:
    sentences = [_opening(rng, scene)]
    chain: Chain = ()
    while len(chain) < steps:
        last = steps - len(chain)
        events = EVENTS if last > 1 else [event for event in EVENTS if event not in TWO_STEPS]
        event = _draw_event(rng, events, scene)
        if event is None:
            return None
        sentence, lines, count = event
        sentences.append(sentence)
        chain = (*chain, *lines)
        scene = Scene(scene.who, scene.other, scene.things, count)
    sentences.append(_closing(rng, scene))
    return " ".join(sentences), chain


def _draw_event(rng: random.Random, events: list[Callable], scene: Scene) -> Event | None:
    """An event after which the count is from 1 to LIMIT, or None after 20 draws."""
    for _ in range(20):
        event = rng.choice(events)(rng, scene)
        if event is not None and 1 <= event[2] <= LIMIT:
            return event
    return None


def _opening(rng: random.Random, scene: Scene) -> str:
    start = rng.choice(("has", "starts with", "owns"))
    return f"{scene.who} {start} {scene.count} {scene.things}."


def _closing(rng: random.Random, scene: Scene) -> str:
    return rng.choice(
        (
            f"How many {scene.things} does {scene.who} have now?",
            f"How many {scene.things} are left with {scene.who}?",
            f"What is the number of {scene.things} that {scene.who} has in the end?",
        )
    )


def _gain(rng: random.Random, scene: Scene) -> Event:
    n = rng.randint(2, 50)
    sentence = rng.choice(
        (
            f"{scene.who} buys {n} more.",
            f"{scene.other} gives {scene.who} {n} {scene.things}.",
            f"Then {scene.who} finds {n} {scene.things}.",
            f"{scene.who} gets {n} from {scene.other}.",
        )
    )
    return sentence, (f"{scene.count}+{n}={scene.count + n}",), scene.count + n


def _loss(rng: random.Random, scene: Scene) -> Event | None:
    if scene.count < 3:
        return None
    n = rng.randint(1, min(scene.count - 1, 60))
    sentence = rng.choice(
        (
            f"{scene.who} loses {n}.",
            f"{scene.who} gives {n} to {scene.other}.",
            f"Then {scene.who} sells {n} {scene.things}.",
            f"{scene.other} takes {n} of them.",
        )
    )
    return sentence, (f"{scene.count}-{n}={scene.count - n}",), scene.count - n


def _times(rng: random.Random, scene: Scene) -> Event:
    n = rng.randint(2, 5)
    choices = [f"Next week {scene.who} has {n} times as many."]
    if n in TIMES:
        choices.append(f"{scene.who} {TIMES[n]} the heap.")
    return rng.choice(choices), (f"{scene.count}*{n}={scene.count * n}",), scene.count * n


def _part(rng: random.Random, scene: Scene) -> Event | None:
    parts = [n for n in ORDINALS if scene.count % n == 0]
    if not parts:
        return None
    n = rng.choice(parts)
    sentence = rng.choice(
        (
            f"{scene.who} keeps only {ORDINALS[n]} of them.",
            f"{scene.who} shares them equally among {n} people and keeps one share.",
        )
    )
    return sentence, (f"{scene.count}/{n}={scene.count // n}",), scene.count // n


def _gain_boxes(rng: random.Random, scene: Scene) -> Event:
    n, each, total = _boxes(rng)
    box = rng.choice(BOXES.split())
    sentence = rng.choice(
        (
            f"{scene.who} buys {n} {box} of {each} {scene.things} each.",
            f"{scene.other} brings {n} {box} with {each} in every one.",
        )
    )
    after = scene.count + total
    return sentence, (f"{n}*{each}={total}", f"{scene.count}+{total}={after}"), after


def _loss_boxes(rng: random.Random, scene: Scene) -> Event:
    n, each, total = _boxes(rng)
    sentence = rng.choice(
        (
            f"{scene.who} gives {each} {scene.things} to each of {n} friends.",
            f"On {n} days {scene.who} loses {each} a day.",
        )
    )
    after = scene.count - total
    return sentence, (f"{n}*{each}={total}", f"{scene.count}-{total}={after}"), after


def _together(rng: random.Random, scene: Scene) -> Event:
    """The other person has more or fewer things, and gives all of them to the first person."""
    n = rng.randint(2, 30)
    more = rng.random() < 0.5 or scene.count <= n
    theirs = scene.count + n if more else scene.count - n
    sentence = (
        f"{scene.other} has {n} {'more' if more else 'fewer'} than {scene.who} "
        f"and gives {scene.who} all of them."
    )
    after = scene.count + theirs
    first = f"{scene.count}{'+' if more else '-'}{n}={theirs}"
    return sentence, (first, f"{scene.count}+{theirs}={after}"), after


def _boxes(rng: random.Random) -> tuple[int, int, int]:
    n, each = rng.randint(2, 9), rng.randint(2, 12)
    return n, each, n * each


TWO_STEPS = [_gain_boxes, _loss_boxes, _together]
EVENTS = [_gain, _loss, _times, _part, *TWO_STEPS]
