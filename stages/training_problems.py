"""The problems that a stage trains on: read, mixed, decontaminated and counted."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from pipeline.config import DataConfig, parse_mixture, require
from pipeline.data import is_own_data, make_arithmetic_problems, read_problems
from pipeline.data.decontamination import decontaminate, held_out_index
from pipeline.data.equation_steps import with_single_operations
from pipeline.data.few_shot import few_shot_problems
from pipeline.data.leak_index import LeakFinder
from pipeline.data.mixture import mixed_stream, mixture
from pipeline.data.number_variants import with_number_variants, with_other_numbers
from pipeline.data.problems import stream_problems
from pipeline.data.self_correction import with_self_correction, with_self_corrections
from pipeline.hosts import once_a_host
from pipeline.records import Problem


def training_problems(data: DataConfig, seed: int) -> list[Problem]:
    """The problems to train on; prints what was read and dropped.

    Of the processes of a host one reads them, and the others take its problems (`once_a_host`).
    """
    return once_a_host(lambda: _training_problems(data, seed))


def _training_problems(data: DataConfig, seed: int) -> list[Problem]:
    weights = parse_mixture(data.dataset)
    _require_own_data(list(weights), data)
    problems = without_held_out(_read_mixture(data, weights, seed), list(weights), data)
    if data.single_operations:
        problems = [with_single_operations(problem) for problem in problems]
    if data.number_variants:
        made = with_number_variants(problems, share=data.number_variants, seed=seed)
        leaks = _held_out(list(weights), data)
        pairs = zip(made, problems, strict=True)
        made = [old if new != old and leaks.holds(new) else new for new, old in pairs]
        changed = sum(new != old for new, old in zip(made, problems, strict=True))
        print(f"{changed:,} of {len(made):,} problems have other numbers")
        problems = made
    if data.self_correction_share:
        made = with_self_corrections(problems, share=data.self_correction_share, seed=seed)
        changed = sum(new != old for new, old in zip(made, problems, strict=True))
        print(f"{changed:,} of {len(made):,} thoughts contain a self-correction")
        problems = made
    if data.direct_share:
        style = random.Random(f"{seed}/direct")
        problems = [_maybe_direct(p, data.direct_share, style) for p in problems]
        print(f"{sum(p.direct for p in problems):,} of {len(problems):,} thoughts are left empty")
    return problems


def problem_stream(data: DataConfig, seed: int) -> Callable[[], Iterator[Problem]]:
    """A function that starts a pass over the training problems as a stream.

    The stream is a mixture by weights, decontaminated row by row, with self-corrections.
    """
    weights = {name: w or 1.0 for name, w in parse_mixture(data.dataset).items()}
    _require_own_data(list(weights), data)
    require(data.shares is None, "streaming=true reads data sets; leave shares out")
    leaks = _held_out(list(weights), data)

    def stream() -> Iterator[Problem]:
        streams = {n: stream_problems(n, data.split, data.data_root, data) for n in weights}
        problems = streams.popitem()[1] if len(streams) == 1 else None
        problems = problems or mixed_stream(streams, weights, seed=seed)
        rng = random.Random(seed)
        for problem in islice(problems, data.size):
            if leaks.holds(problem):
                require(
                    data.overlap != "refuse",
                    f"{problem.source}:{problem.id} is in an evaluation suite; remove it, "
                    "or choose overlap=drop",
                )
                continue
            if data.single_operations:
                problem = with_single_operations(problem)
            if data.number_variants and rng.random() < data.number_variants:
                made = with_other_numbers(problem, rng)
                problem = problem if leaks.holds(made) else made
            if rng.random() < data.self_correction_share:
                problem = with_self_correction(problem, rng)
            if data.direct_share:
                problem = _maybe_direct(problem, data.direct_share, rng)
            yield problem

    return stream


def _maybe_direct(problem: Problem, share: float, rng: random.Random) -> Problem:
    """The problem, its thought to be left empty with probability `share` if it has one."""
    return replace(problem, direct=rng.random() < share and problem.thought != "")


def _require_own_data(names: list[str], data: DataConfig) -> None:
    """Raise ValueError for an option of own data where all data sets have registered names."""
    for option in ("columns", "dataset_config", "dataset_split", "dataset_revision"):
        value = getattr(data, option)
        remedy = "give --split" if option == "dataset_split" else "leave it out"
        require(
            value is None or any(map(is_own_data, names)),
            f"{option}={value} is for your own data, and dataset={data.dataset} is registered; "
            f"{remedy}",
        )


def _held_out(names: list[str], data: DataConfig) -> LeakFinder:
    """The index of the held-out questions; empty with overlap=allow."""
    return LeakFinder([]) if data.overlap == "allow" else held_out_index(names, data.data_root)[0]


def without_held_out(problems: list[Problem], names: list[str], data: DataConfig) -> list[Problem]:
    """The problems that are in no evaluation suite; prints the overlaps found."""
    if data.overlap == "allow":
        return problems
    found = decontaminate(problems, names, data.data_root)
    leaks = ", ".join(f"{n:,} in {suite}" for suite, n in found.removed.items())
    print(
        f"compared with {len(found.suites)} held-out splits: {leaks or 'no row'} also there"
        f"{' and dropped' if leaks and data.overlap == 'drop' else ''}; "
        f"{found.twins:,} differ from one in their numbers only"
    )
    if leaks and data.overlap == "refuse":
        raise ValueError(
            f"training rows are questions of evaluation suites ({leaks}); remove them, or choose "
            "overlap=drop"
        )
    if not found.kept:
        raise ValueError(
            f"all {len(problems):,} rows of dataset={data.dataset} are in evaluation suites "
            f"({leaks}); train on another split, or choose overlap=allow and do not report them"
        )
    return found.kept


def with_thoughts(problems: list[Problem], data: DataConfig) -> list[Problem]:
    """The problems that SFT can train on: with think=true those with a thought; prints the others.

    Raises:
        ValueError: no problem has a thought.
    """
    kept = [problem for problem in problems if problem.thought or not data.think]
    if not kept:
        raise ValueError(
            f"none of the {len(problems):,} rows of dataset={data.dataset} has a thought, and SFT "
            "trains worked solutions: give rows with a solution, name its column with --columns "
            "thought=COLUMN, or give --think false to train the answers alone; PPO needs answers "
            "only"
        )
    if len(kept) < len(problems):
        print(f"{len(problems) - len(kept):,} of {len(problems):,} rows have no thought: left out")
    return kept


def _read_mixture(data: DataConfig, weights: dict[str, float | None], seed: int) -> list[Problem]:
    """All problems of the data sets, or a mixture if they have weights."""
    known = {name: weight for name, weight in weights.items() if weight is not None}
    weighted = len(known) == len(weights)
    shares = data.parsed_shares()
    parts = {}
    for name in weights:
        if name == "nano" and shares is not None:
            parts[name] = make_arithmetic_problems(
                shares,
                size=data.size or 20_000,
                seed=seed + data.data_seed_offset,
                decomposed_share=data.decomposed_share,
            )
            continue
        limit = None if weighted else data.size
        report = read_problems(name, data.split, data.data_root, limit, data.processes, data)
        dropped = ", ".join(f"{n} {reason}" for reason, n in report.dropped.items()) or "none"
        if report.note:
            print(report.note)
        origin = report.problems[0].source if report.problems else f"{name}/{data.split}"
        print(f"{origin}: {report.rows_read:,} rows read, dropped: {dropped}")
        parts[name] = report.problems
    if weighted:
        repeat = data.number_variants > 0  # a problem taken twice has other numbers each time
        return mixture(parts, known, seed=seed, size=data.size, repeat=repeat)
    return [problem for part in parts.values() for problem in part]


def take_examples(
    data: DataConfig, problems: list[Problem]
) -> tuple[list[Problem] | None, list[Problem]]:
    """(worked examples of the prompt, problems to train on); a number takes the first rows.

    The examples are None where `few_shot` is not given, so that stored ones stay.
    """
    worked = [problem for problem in problems if problem.thought or not data.think]
    examples = few_shot_problems(data, lambda number: worked[:number])
    if not examples:
        return examples, problems
    taken = {(problem.turns, problem.question) for problem in examples}
    return examples, [p for p in problems if (p.turns, p.question) not in taken]


def describe(problems: list[Problem]) -> str:
    """One line: the number of problems, in all and by level."""
    levels = Counter(problem.level for problem in problems)
    some = ", ".join(f"{level or 'no level'} {n:,}" for level, n in sorted(levels.items())[:12])
    return f"{len(problems):,} problems ({some})"
