"""What a teacher is: something that samples n answers of a question."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.chat.tags import END_THINK, THINK, split_completion
from pipeline.records import Problem

STOP, LENGTH, REFUSED, UNCLEAR = "stop", "length", "refused", "unclear tags"


@dataclass(frozen=True)
class TeacherSample:
    """One answer of a teacher: its thought, "" where it shows none, and its visible text."""

    thought: str
    answer: str
    finish: str = STOP  # or LENGTH, REFUSED (by the server), UNCLEAR (tags that do not match)
    tokens: int = 0  # of the completion, thought included, as the teacher counts them


class Teacher(Protocol):
    """Samples answers; the order of the questions in the result is free."""

    def fingerprints(self) -> dict[str, object]:
        """What identifies the teacher beside its name, to compare with stored samples."""
        ...

    def sample(self, problems: Mapping[int, Problem]) -> Iterator[tuple[int, list[TeacherSample]]]:
        """(number of the question, its n samples) of every problem, as soon as it is finished."""
        ...


def split_text(text: str, tokens: int = 0, finish: str = STOP) -> TeacherSample:
    """The sample of a text that may hold its thought between reasoning tags.

    >>> split_text("<think>1+1=2</think>2")
    TeacherSample(thought='1+1=2', answer='2', finish='stop', tokens=0)
    >>> split_text("2").thought, split_text("<think>1</think>2<think>").finish
    ('', 'unclear tags')
    """
    if THINK not in text and END_THINK not in text:
        return TeacherSample("", text.strip(), finish, tokens)
    parts = split_completion(text.strip())
    if parts is None:
        return TeacherSample("", text.strip(), UNCLEAR if finish == STOP else finish, tokens)
    return TeacherSample(*parts, finish, tokens)
