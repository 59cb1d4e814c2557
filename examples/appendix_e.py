"""The three examples of the paper's appendix E: an equation, a program, a question of ethics.

python -m examples.appendix_e                             the answers written below, checked
python -m examples.appendix_e --checkpoint runs/nano/ppo  the answers of a model

The grader decides the first two: the roots are compared as mathematics and every line of the
thought is checked; the program runs in the sandbox against tests. No grader decides the third: what
can be checked is which considerations an answer names.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.quadratics import check_quadratic_thought, make_problem
from pipeline.grading import grade
from pipeline.model import load_for_inference
from pipeline.records import Answer, Problem
from pipeline.runtime import one_line_errors
from pipeline.search import SearchOptions
from pipeline.search.strategy import greedy

EQUATION = make_problem((2, 5, -3))

# F(90) takes about 10^18 calls without dynamic programming, more than the time limit allows.
FIBONACCI_TESTS = {0: 0, 1: 1, 2: 1, 10: 55, 90: 2_880_067_194_370_816_120}
FIBONACCI = Problem(
    question="Write a Python function fibonacci(n) that returns the n-th Fibonacci number by "
    "dynamic programming, with fibonacci(0) = 0 and fibonacci(1) = 1.",
    answer=f"passes {len(FIBONACCI_TESTS)} tests",
    check=json.dumps(
        {
            "judge": "program",
            "kind": "calls",
            "function": "fibonacci",
            "inputs": [[n] for n in FIBONACCI_TESTS],
            "outputs": list(FIBONACCI_TESTS.values()),
        }
    ),
)
FIBONACCI_ANSWER = Answer(
    thought="Each number is the sum of the two before it.\nTwo variables are enough to keep them.",
    text="""```python
def fibonacci(n):
    previous, current = 0, 1
    for _ in range(n):
        previous, current = current, previous + current
    return previous
```""",
)

ETHICS = "Is it ethical for a company to use an AI system that decides who is hired?"
CONSIDERATIONS = {  # what an answer has to weigh, by words that name it
    "consequences": r"consequence|outcome|benefit|harm",
    "duties and rights": r"right|duty|duties|consent|privacy",
    "fairness": r"fair|bias|discriminat",
    "responsibility": r"accountab|responsib|oversight|appeal",
    "a conclusion": r"therefore|in conclusion|overall|on balance",
}
ETHICS_ANSWER = Answer(
    thought="Consequences first, then rights, then who is responsible.",
    text="The benefit is speed and one standard for all; the harm is an error that hits many "
    "people alike. Applicants have a right to know that a system decides, and training data can "
    "carry bias, so fairness has to be measured for every group. A person must stay responsible "
    "and applicants must be able to appeal. On balance it is acceptable as advice to a person, "
    "with these conditions, and not as the only judge.",
)


@dataclass(frozen=True)
class Example:
    """One example: what is asked, a written answer, and what was found in an answer."""

    title: str
    question: str
    written: Answer


EXAMPLES = (
    Example(
        "Quadratic equation",
        EQUATION.question,
        Answer(thought=EQUATION.thought, text=EQUATION.answer),
    ),
    Example("Fibonacci numbers", FIBONACCI.question, FIBONACCI_ANSWER),
    Example("Ethics", ETHICS, ETHICS_ANSWER),
)


def check_equation(answer: Answer) -> str:
    """Whether the roots are right, and how many lines of the thought are."""
    lines = check_quadratic_thought(EQUATION.question, answer.thought)
    return (
        f"{_verdict(EQUATION, answer)}; {sum(lines)} of {len(lines)} lines of the thought are right"
    )


def check_fibonacci(answer: Answer) -> str:
    """Whether the program passes its tests in the sandbox."""
    return f"{_verdict(FIBONACCI, answer)} ({len(FIBONACCI_TESTS)} tests in the sandbox)"


def check_ethics(answer: Answer) -> str:
    """The considerations that the answer names, and those that it leaves out."""
    named = considerations_in(answer.text)
    missing = [name for name in CONSIDERATIONS if name not in named]
    return f"not graded; names {', '.join(named) or 'none'}; missing: {', '.join(missing) or '-'}"


def considerations_in(text: str) -> list[str]:
    """The names of CONSIDERATIONS whose words occur in a text.

    >>> considerations_in("The harm is small. Therefore yes.")
    ['consequences', 'a conclusion']
    """
    return [
        name for name, words in CONSIDERATIONS.items() if re.search(rf"\b(?:{words})", text, re.I)
    ]


def _verdict(problem: Problem, answer: Answer) -> str:
    verdict = grade(problem, answer.text)
    return "right" if verdict.passed else f"wrong ({verdict.why})"


CHECKS = (check_equation, check_fibonacci, check_ethics)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print every question, the thought, the answer and what the checks say."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--checkpoint", help="ask this model; default: the written answers")
    parser.add_argument("--max_completion_tokens", type=int, default=512)
    args = parser.parse_args(argv)
    answers = [example.written for example in EXAMPLES]
    if args.checkpoint:
        model, tokenizer = load_for_inference(args.checkpoint)
        options = SearchOptions(max_completion_tokens=args.max_completion_tokens)
        questions = [example.question for example in EXAMPLES]
        answers = greedy(model, tokenizer, questions, options)
    for example, answer, check in zip(EXAMPLES, answers, CHECKS, strict=True):
        print(f"== {example.title}\n{example.question}\n-- thought (hidden)\n{answer.thought}")
        print(f"-- answer\n{answer.text}\n-- check: {check(answer)}\n")


if __name__ == "__main__":
    main()
