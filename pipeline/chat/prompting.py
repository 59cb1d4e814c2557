"""The prompting practices of the paper's 5.3 for models that reason on their own."""

import re
from collections.abc import Mapping

MANY_WORDS = 2000  # of added context
_INSTRUCTIONS = re.compile(
    r"think (?:it through |this through )?step[- ]by[- ]step|let'?s think|explain your reasoning|"
    r"show (?:all )?your (?:work|reasoning)|chain[- ]of[- ]thought",
    re.IGNORECASE,
)


def delimited(question: str, parts: Mapping[str, str]) -> str:
    """The question, and each part of its material between tags with the name of the part.

    Raises:
        ValueError: a name is no tag, or a part contains its own closing tag.

    >>> print(delimited("Which is longer?", {"first": "abc", "second": "ab"}))
    Which is longer?
    <BLANKLINE>
    <first>
    abc
    </first>
    <BLANKLINE>
    <second>
    ab
    </second>
    """
    blocks = [question.strip()]
    for name, text in parts.items():
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name == "think":
            raise ValueError(
                f"part {name!r} must be a word of letters, digits, - and _, not think; rename it"
            )
        if f"</{name}>" in text:
            raise ValueError(
                f"part {name!r} contains </{name}>, which would end it early; choose another name"
            )
        blocks.append(f"<{name}>\n{text.strip()}\n</{name}>")
    return "\n\n".join(blocks)


def prompting_advice(question: str) -> list[str]:
    """What 5.3 would change in a question; empty where there is nothing.

    >>> prompting_advice("What is 2+2?"), len(prompting_advice("2+2? Think step by step."))
    ([], 1)
    """
    advice = []
    if found := _INSTRUCTIONS.search(question):
        advice.append(f"leave out {found[0]!r}: the model reasons without being asked to")
    if (words := len(question.split())) > MANY_WORDS:
        advice.append(
            f"the question has {words:,} words: keep only the context that the answer needs"
        )
    if question.count("\n\n") >= 2 and not re.search(r'<\w+>|"""|```|^#|^---', question, re.M):
        advice.append("put the parts of the question between delimiters, such as <text>...</text>")
    return advice
