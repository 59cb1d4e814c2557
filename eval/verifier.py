"""Measure the critic of a checkpoint: calibration, and above all its order within a question.

python -m eval.verifier --checkpoint runs/nano/critic --suite nano --limit 100 \
    --output_dir runs/nano/critic_eval

Every problem is answered `n` times, step by step; from every state `rollouts` further answers
tell what its value should be. Three judges of the same states are measured: the value head (V), the
verifier (score), and the policy's own likelihood, which costs nothing. Writes critic.json.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.run import load_checkpoint
from eval.suites import find_suite, read_suite
from pipeline.cli import CommandParser
from pipeline.folder_lock import lock_folder
from pipeline.generation.shared_prefix import Branch
from pipeline.grading.arithmetic import equations_hold
from pipeline.grading.grade import grade
from pipeline.model import has_value_head
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, set_threads, write_json, write_run_info
from pipeline.search import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.stats.ranking import calibration, quality

SCORERS = ("value head", "score", "likelihood")


@dataclass(kw_only=True)
class VerifierArguments(SearchOptions):
    """Which checkpoint, on what, with how many rollouts."""

    n: int = HfArg(default=8, help="answers of a question")
    temperature: float = HfArg(default=1.0, help="of sampling")
    rollouts: int = HfArg(default=8, help="further answers from every state; 0 for none")
    checkpoint: str = HfArg(default="", help="checkpoint folder")
    suite: str = HfArg(default="nano", help="name of a suite")
    limit: int | None = HfArg(default=100, help="so many problems, evenly spread over the suite")
    levels: str = HfArg(default="", help="only problems of these levels, separated by commas")
    data_root: str | None = HfArg(default=None, help="folder of NAME/SPLIT.jsonl.gz")
    output_dir: str = HfArg(default="", help="folder of critic.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("checkpoint", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing: pass --{name} or set it in the --config")
        if self.n < 2:
            raise ValueError(f"n={self.n} leaves nothing to compare within a question: give 8")
        if self.rollouts < 0:
            raise ValueError(f"rollouts={self.rollouts} must be at least 0")
        find_suite(self.suite)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One state of one answer, as every judge sees it."""

    q: int
    answer: int  # which of the question's answers
    step: int
    ended: bool
    holds: bool  # every sum in the step that leads here comes out
    right: float  # share of right answers from here on; of the answer itself where it has ended
    judged: dict[str, float]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write critic.json, print the figures."""
    (args,) = CommandParser(VerifierArguments).parse_args_and_config(argv)
    problems = read_suite(args.suite, args.data_root, args.limit, args.levels).problems
    set_threads()
    model, tokenizer = load_checkpoint(args.checkpoint)
    if not has_value_head(model):
        raise ValueError(
            f"{args.checkpoint} has no value_head.safetensors to measure: take a checkpoint of PPO"
        )
    with lock_folder(args.output_dir):
        seen: list[Seen] = []
        with tqdm(total=len(problems), desc=f"{args.suite} critic", unit="q") as bar:
            for start in range(0, len(problems), 8):
                part = problems[start : start + 8]
                seen += observe(model, tokenizer, part, args, first=start)
                bar.update(len(part))
        figures = {"suite": args.suite, "checkpoint": args.checkpoint, **report(seen)}
        folder = Path(args.output_dir)
        write_run_info(folder, verifier=args)
        write_json(folder / "critic.json", figures)
        print(table(figures), f"\n-> {folder / 'critic.json'}")


def observe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    args: VerifierArguments,
    *,
    first: int = 0,
) -> list[Seen]:
    """Every state of every answer, with what Monte Carlo makes of it."""
    questions = [p.question for p in problems]
    ways = args.n * (1 + args.step_tokens * args.rollouts)
    thinker = SearchSession(model, tokenizer, questions, args, ways=ways)
    answers = _step_by_step(thinker, args.n)
    states = [
        (q, g, k, branch) for (q, g), path in answers.items() for k, branch in enumerate(path)
    ]
    rights = _monte_carlo(thinker, problems, states, args.rollouts)
    seen = []
    for (q, g, k, branch), right in zip(states, rights, strict=True):
        if right is None:
            continue
        before = answers[q, g][k - 1].ids if k else ()
        seen.append(
            Seen(
                q=first + q,
                answer=g,
                step=k,
                ended=branch.ended,
                holds=equations_hold(thinker.text(branch.ids[len(before) :])),
                right=right,
                judged={
                    "value head": branch.value,
                    "score": branch.score,
                    "likelihood": math.exp(math.fsum(branch.logprobs)),
                },
            )
        )
    return seen


def report(seen: Sequence[Seen]) -> dict[str, Any]:
    """The figures of every judge: at the end of an answer, on the way, and at false steps."""
    figures: dict[str, Any] = {"answers": len({(s.q, s.answer) for s in seen})}
    ended = [s for s in seen if s.ended]
    # On the way, states are compared with those of the same question at the same step.
    open_ = [s for s in seen if not s.ended and s.step > 0]
    for judge in SCORERS:
        found = {"at the end": _quality(ended, judge, [s.q for s in ended])}
        if open_:
            places = [s.q * 1000 + s.step for s in open_]
            found["on the way"] = _quality(open_, judge, places)
        found["at the first false step"] = falls(seen, judge)
        figures[judge] = found
    figures["monte carlo"] = {"at the first false step": falls(seen, None)}
    return figures


def falls(seen: Sequence[Seen], judge: str | None) -> dict[str, float]:
    """How a judge changes over steps: at the first false sum of an answer, at true steps before it.

    `share` of the false steps at which it falls at all; `false` and `true` are mean changes.
    Without a judge, of the Monte-Carlo estimate.
    """
    by_answer: dict[tuple[int, int], list[Seen]] = {}
    for state in seen:
        by_answer.setdefault((state.q, state.answer), []).append(state)
    false, true = [], []
    for states in by_answer.values():
        for before, after in pairwise(states):
            change = _judged(after, judge) - _judged(before, judge)
            (true if after.holds else false).append(change)
            if not after.holds:
                break
    return {
        "n": len(false),
        "share": sum(change < 0 for change in false) / len(false) if false else math.nan,
        "false": sum(false) / len(false) if false else math.nan,
        "true": sum(true) / len(true) if true else math.nan,
    }


def table(figures: dict[str, Any]) -> str:
    """The heart of the figures, a judge a line."""
    lines = [f"{figures['suite']}: {figures['answers']} answers"]
    lines.append("judge        within  pooled  expl.var  calib.err  best of n  falls at false step")
    for judge in SCORERS:
        end, fall = figures[judge]["at the end"], figures[judge]["at the first false step"]
        lines.append(
            f"{judge:<12} {end['within_question']:6.3f}  {end['auroc']:6.3f}  "
            f"{end['explained_variance']:8.2f}  {end['calibration_error']:9.3f}  "
            f"{end['best_of_n']:9.1%}  {fall['share']:.1%} of {fall['n']}"
        )
    fall = figures["monte carlo"]["at the first false step"]
    lines.append(f"monte carlo falls at {fall['share']:.1%} of {fall['n']} first false steps")
    return "\n".join(lines)


def _step_by_step(thinker: SearchSession, n: int) -> dict[tuple[int, int], list[Branch]]:
    """{(question, answer): its states}, the prompt's first."""
    paths = {(q, g): [root] for q, root in enumerate(thinker.roots) for g in range(n)}
    going = list(paths)
    while going:
        wants = [
            ExpandRequest(q=q, branch=paths[q, g][-1], stream=(5, g, len(paths[q, g])))
            for q, g in going
        ]
        for key, branch in zip(going, thinker.steps(wants), strict=True):
            if branch is not None:
                paths[key].append(branch)
        going = [
            key
            for key, want in zip(going, wants, strict=True)
            if paths[key][-1] is not want.branch and not paths[key][-1].ended
        ]
    return paths


def _monte_carlo(
    thinker: SearchSession, problems: Sequence[Problem], states: Sequence[tuple], rollouts: int
) -> list[float | None]:
    """Share of right answers from every state, of those with a verdict; None where nothing
    tells."""
    wants = [
        ExpandRequest(q=q, branch=branch, stream=(6, g, k, i))
        for q, g, k, branch in states
        if not branch.ended and branch.slots is not None
        for i in range(rollouts)
    ]
    shares: dict[tuple, list[bool | None]] = {}
    for want, branch in zip(wants, thinker.finish(wants), strict=True):
        if branch is not None:
            key = (want.q, *want.stream[1:3])
            shares.setdefault(key, []).append(_right(thinker, want.q, branch, problems))
    found: list[float | None] = []
    for q, g, k, branch in states:
        ended = [_right(thinker, q, branch, problems)] if branch.ended else []
        known = [right for right in ended or shares.get((q, g, k), ()) if right is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _right(
    thinker: SearchSession, q: int, branch: Branch, problems: Sequence[Problem]
) -> bool | None:
    return grade(problems[q], thinker.answer(q, branch).text).right


def _judged(state: Seen, judge: str | None) -> float:
    return state.right if judge is None else state.judged[judge]


def _quality(states: Sequence[Seen], judge: str, places: Sequence[int]) -> dict[str, Any]:
    values_N = torch.tensor([s.judged[judge] for s in states])
    right_N = torch.tensor([s.right for s in states])
    found = quality(values_N, right_N, torch.tensor(places))
    return found | {"calibration": calibration(values_N, right_N)}


if __name__ == "__main__":
    main()
