"""What a grader says of an answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and a word for the log where it is not.

    `right` is None where nothing is known of the answer: a process was killed from outside, was
    starved of the processor, or a computation exceeded its processor time twice. That is missing
    data, neither right nor wrong.
    """

    right: bool | None
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether the answer is known to be right."""
        return self.right is True
