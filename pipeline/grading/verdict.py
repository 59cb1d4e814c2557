"""The verdict of a grader on one answer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and a short reason for the log where it is not.

    `right` is None where the answer could not be graded: a process was killed from outside or got
    no processor time, or a computation exceeded its processor time twice. That is missing data,
    neither right nor wrong.
    """

    right: bool | None
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether the answer is known to be right."""
        return self.right is True
