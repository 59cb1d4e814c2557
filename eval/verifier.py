"""Evaluate the value head and the verifier of a checkpoint: calibration and ranking.

python -m eval.verifier --checkpoint runs/nano/verifier --suite nano --limit 100 \\
    --output_dir runs/nano/verifier_eval

Every problem is answered `n` times, step by step. From every intermediate state, `rollouts`
completions give a Monte-Carlo estimate of its value. Three scorers of the same states are compared:
the value head (V), the verifier (score) and the likelihood of the path under the policy. Writes
verifier.json.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.run import load_checkpoint
from eval.suites import find_suite, read_suite, suite_label
from pipeline.answers.settings import too_long_problems
from pipeline.cli import CommandParser
from pipeline.config import Bounds, NonNegativeInt, PositiveInt, Required, require
from pipeline.device import DeviceOptions, choose_device
from pipeline.folder_lock import lock_folder, require_free
from pipeline.generation.shared_prefix import PartialSequence
from pipeline.grading import grade
from pipeline.grading.arithmetic import equations_hold
from pipeline.hosts import require_one_process
from pipeline.model import has_value_head
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.runtime import (
    config_names,
    one_line_errors,
    prepare_cpu,
    write_json,
    write_run_info,
)
from pipeline.search import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.stats.calibration import calibration
from pipeline.stats.value_metrics import value_metrics

Results = dict[str, Any]  # {scorer: {kind of states: {metric: value}}}, and the answers
SCORERS = ("value head", "score", "likelihood")


@dataclass(kw_only=True)
class VerifierArguments(DeviceOptions, SearchOptions):
    """Checkpoint, suite, and numbers of answers and rollouts."""

    n: Annotated[
        int, Bounds(ge=2, why="one answer leaves nothing to compare within a question")
    ] = HfArg(default=8, help="answers per question")
    temperature: float = HfArg(default=1.0, help="sampling temperature")
    rollouts: NonNegativeInt = HfArg(
        default=8, help="Monte-Carlo completions from every state; 0 for none"
    )
    checkpoint: Required = HfArg(default="", help="checkpoint folder")
    suite: str = HfArg(default="nano", help="suite name")
    limit: PositiveInt | None = HfArg(
        default=100, help="number of problems, evenly spread over the suite"
    )
    levels: str = HfArg(default="", help="levels of the problems, separated by commas")
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    output_dir: Required = HfArg(default="", help="folder of verifier.json")

    def __post_init__(self) -> None:
        super().__post_init__()
        find_suite(self.suite)
        choose_device(self.device)


@dataclass(frozen=True, kw_only=True)
class StateScores:
    """One state of one answer with its score by every scorer."""

    q: int
    answer: int  # index among the question's answers
    step: int
    ended: bool
    step_correct: bool  # all equations of the step that leads to this state are correct
    # Share of right completions from here, or the outcome of an answer that has ended; None without
    # a verdict, or without completions.
    right: float | None
    scores: dict[str, float]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Score the states of all problems, write verifier.json, print the metrics."""
    (args,) = CommandParser(VerifierArguments).parse_args_and_config(argv)
    require_one_process("eval.verifier")
    folder = Path(args.output_dir)
    _require_own_folder(folder)
    problems = read_suite(args.suite, args.data_root, args.limit, args.levels).problems
    prepare_cpu()
    model, tokenizer = load_checkpoint(args.checkpoint, args)
    if not has_value_head(model):
        raise ValueError(
            f"{args.checkpoint} has no value_head.safetensors: use a checkpoint of PPO"
        )
    asked = [p.prompt for p in problems]
    too_long_problems(model, tokenizer, problems, asked, args.options, "a suite without them")
    with lock_folder(args.output_dir):
        states: list[StateScores] = []
        with Progress(len(problems), f"{args.suite} verifier", unit="q") as bar:
            for start in range(0, len(problems), 8):
                part = problems[start : start + 8]
                states += score_states(model, tokenizer, part, args, first=start)
                bar.advance(len(part))
        suite = suite_label(args.suite)
        results = {"suite": suite, "checkpoint": args.checkpoint, **verifier_results(states)}
        write_run_info(folder, verifier=args)
        write_json(folder / "verifier.json", results)
        print(results_table(results), f"\n-> {folder / 'verifier.json'}")


def _require_own_folder(folder: Path) -> None:
    """Raise ValueError where a folder holds another result than one of this command: its run.json
    would be replaced."""
    if config_names(folder) != {"verifier"}:
        require_free(folder, "an evaluation of a verifier")


def score_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    args: VerifierArguments,
    *,
    first: int = 0,
) -> list[StateScores]:
    """Every state of every answer, with its scores and its Monte-Carlo value."""
    questions = [p.prompt for p in problems]
    max_paths = args.n * (1 + args.step_tokens * args.rollouts)
    session = SearchSession(model, tokenizer, questions, args, max_paths=max_paths)
    answers = _step_by_step(session, args.n)
    states = [
        (q, g, k, branch) for (q, g), path in answers.items() for k, branch in enumerate(path)
    ]
    rights = _monte_carlo(session, problems, states, args.rollouts)
    scored = []
    for (q, g, k, branch), right in zip(states, rights, strict=True):
        before = answers[q, g][k - 1].length if k else 0
        scored.append(
            StateScores(
                q=first + q,
                answer=g,
                step=k,
                ended=branch.ended,
                step_correct=equations_hold(session.text(branch.ids[before:])),
                right=right,
                scores={
                    "value head": branch.known_value,
                    "score": branch.known_score,
                    "likelihood": math.exp(math.fsum(branch.logprobs)),
                },
            )
        )
    return scored


def verifier_results(states: Sequence[StateScores]) -> Results:
    """Metrics of every scorer on final states, intermediate states and first incorrect steps.

    Raises:
        ValueError: no state is the end of an answer.
    """
    results: Results = {"answers": len({(s.q, s.answer) for s in states})}
    known = [s for s in states if s.right is not None]
    final = [s for s in known if s.ended]
    require(
        bool(final),
        f"none of {results['answers']} answers came to its end, so there is nothing to compare; "
        "raise max_sample_tokens, or give a checkpoint that ends its answers",
    )
    # Intermediate states are compared with those of the same question at the same step.
    intermediate = [s for s in known if not s.ended and s.step > 0]
    steps = 1 + max((s.step for s in intermediate), default=0)
    for scorer in SCORERS:
        found: dict[str, Any] = {
            "final states": _scorer_metrics(final, scorer, [s.q for s in final])
        }
        if intermediate:
            groups = [s.q * steps + s.step for s in intermediate]
            found["intermediate states"] = _scorer_metrics(intermediate, scorer, groups)
        found["first incorrect step"] = score_change_at_first_error(states, scorer)
        results[scorer] = found
    monte_carlo = score_change_at_first_error(states, None)
    return results | {"monte carlo": {"first incorrect step": monte_carlo}}


def score_change_at_first_error(
    states: Sequence[StateScores], scorer: str | None
) -> dict[str, float]:
    """Change of a score over the first incorrect step of an answer and the correct ones before it.

    n                      answers with an incorrect step at which the change is known
    share_decreasing       share of their first incorrect steps at which the score decreases
    mean_change            mean change over the first incorrect steps
    mean_change_correct    mean change over the correct steps

    With `scorer=None` the score is the Monte-Carlo value, which not all states have.
    """
    by_answer: dict[tuple[int, int], list[StateScores]] = {}
    for state in states:
        by_answer.setdefault((state.q, state.answer), []).append(state)
    false: list[float] = []
    true: list[float] = []
    for path in by_answer.values():
        for before, after in pairwise(path):
            old, new = _score(before, scorer), _score(after, scorer)
            if old is not None and new is not None:
                (true if after.step_correct else false).append(new - old)
            if not after.step_correct:
                break
    return {
        "n": len(false),
        "share_decreasing": sum(change < 0 for change in false) / len(false) if false else math.nan,
        "mean_change": sum(false) / len(false) if false else math.nan,
        "mean_change_correct": sum(true) / len(true) if true else math.nan,
    }


def results_table(results: Results) -> str:
    """Main metrics on final states as text, one line per scorer.

    `within` is the AUROC within a question (mean over questions), `auroc` the one over all states;
    "-" where one is not defined, as where all answers are right, or for the Monte-Carlo value
    without completions.
    """
    lines = [f"{results['suite']}: {results['answers']} answers"]
    lines.append(
        "scorer       within   auroc  expl.var  calib.err  best of n  drops at first error"
    )
    for scorer in SCORERS:
        final = results[scorer]["final states"]
        drop = results[scorer]["first incorrect step"]
        errors = drop["n"]  # the same for every scorer
        within, area = (_cell(final[x], 6, ".3f") for x in ("within_question_auroc_mean", "auroc"))
        variance = _cell(final["explained_variance"], 8, ".2f")
        lines.append(
            f"{scorer:<12} {within}  {area}  {variance}  {final['calibration_error']:9.3f}  "
            f"{final['best_of_n']:9.1%}  {_drops(drop, errors)}"
        )
    drop = results["monte carlo"]["first incorrect step"]
    lines.append(f"monte carlo  drops at first error: {_drops(drop, errors)}")
    return "\n".join(lines)


def _cell(value: float, width: int, form: str) -> str:
    """A number as text of that width; "-" for one that is not defined."""
    return ("-" if math.isnan(value) else f"{value:{form}}").rjust(width)


def _drops(found: Mapping[str, float], errors: int) -> str:
    if not found["n"]:
        return "-" if errors else "no errors"
    return f"{found['share_decreasing']:.1%} of {found['n']}"


def _step_by_step(session: SearchSession, n: int) -> dict[tuple[int, int], list[PartialSequence]]:
    """{(question, answer): states of the answer}, starting with the state after the prompt."""
    paths = {(q, g): [root] for q, root in enumerate(session.roots) for g in range(n)}
    unfinished = list(paths)
    while unfinished:
        requests = [
            ExpandRequest(q=q, sequence=paths[q, g][-1], stream=(5, g, len(paths[q, g])))
            for q, g in unfinished
        ]
        for key, branch in zip(unfinished, session.steps(requests), strict=True):
            if branch is not None:
                paths[key].append(branch)
        unfinished = [
            key
            for key, request in zip(unfinished, requests, strict=True)
            if paths[key][-1] is not request.sequence and not paths[key][-1].ended
        ]
    return paths


def _monte_carlo(
    session: SearchSession, problems: Sequence[Problem], states: Sequence[tuple], rollouts: int
) -> list[float | None]:
    """Share of right completions from every state, of those with a verdict; None where no
    completion has one."""
    requests = [
        ExpandRequest(q=q, sequence=branch, stream=(6, g, k, i))
        for q, g, k, branch in states
        if not branch.ended and branch.cached is not None
        for i in range(rollouts)
    ]
    outcomes: dict[tuple, list[bool | None]] = {}
    for request, branch in zip(requests, session.finish(requests), strict=True):
        if branch is not None:
            key = (request.q, *request.stream[1:3])
            outcomes.setdefault(key, []).append(_right(session, request.q, branch, problems))
    found: list[float | None] = []
    for q, g, k, branch in states:
        ended = [_right(session, q, branch, problems)] if branch.ended else []
        known = [right for right in ended or outcomes.get((q, g, k), []) if right is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _right(
    session: SearchSession, q: int, branch: PartialSequence, problems: Sequence[Problem]
) -> bool | None:
    return grade(problems[q], session.answer(q, branch).text).right


def _score(state: StateScores, scorer: str | None) -> float | None:
    return state.right if scorer is None else state.scores[scorer]


def _scorer_metrics(
    states: Sequence[StateScores], scorer: str, groups: Sequence[int]
) -> dict[str, object]:
    scores = [s.scores[scorer] for s in states]
    right = [s.right for s in states if s.right is not None]
    bins = [
        {"n": b.n, "value": b.confidence, "right": b.right.mean}
        for b in calibration(scores, right).bins
    ]
    return value_metrics(scores, right, groups) | {"calibration": bins}


if __name__ == "__main__":
    main()
