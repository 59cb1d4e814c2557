"""Accuracy against inference tokens: the curve of a vote, its law, and a plot.

python -m eval.scaling --samples SFT=runs/nano/samples/sft,PPO=runs/nano/samples/ppo \
    --output runs/nano/scaling.json

Reads folders that eval.samples wrote; writes JSON, and a PNG beside it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from transformers.hf_argparser import HfArg

from eval.compare import parse_folders
from eval.run_folder import read_run
from eval.samples import majority_curve, powers_of_two
from pipeline.cli import CommandParser
from pipeline.config import check_types, require
from pipeline.runtime import one_line_errors, write_json
from pipeline.stats.scaling_law import LogLaw, fit_log_law, per_doubling_interval


@dataclass(kw_only=True)
class ScalingArguments:
    """Whose samples are laid against their cost."""

    samples: str = HfArg(default="", help="NAME=DIR of eval.samples, separated by commas")
    output: str = HfArg(default="", help="JSON file to write; the plot goes beside it")

    def __post_init__(self) -> None:
        check_types(self)
        require(bool(self.samples), "--samples is missing: name folders of eval.samples")
        require(bool(self.output), "--output is missing: name a JSON file")
        parse_folders("samples", self.samples)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    (args,) = CommandParser(ScalingArguments).parse_args_and_config(argv)
    figures = {
        name: scaling(read_run(folder)[1])
        for name, folder in parse_folders("samples", args.samples).items()
    }
    output = Path(args.output)
    write_json(output, figures)
    draw_scaling(figures, output.with_suffix(".png"))
    for name, found in figures.items():
        print(f"{name}: {sentence(found)}")
    print("->", output)


def scaling(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The points of a vote of 1, 2, 4, ... samples, and the law through them."""
    n = min(len(row["samples"]) for row in rows)
    ks = powers_of_two(n)
    curve_QK = majority_curve(rows, ks)
    drawn = [s["tokens"] for row in rows for s in row["samples"]]
    tokens_K = [k * sum(drawn) / len(drawn) for k in ks]
    accuracy_K = curve_QK.mean(axis=0).tolist()
    slope = per_doubling_interval(tokens_K, curve_QK)
    return {
        "points": [
            {"k": k, "tokens": t, "accuracy": a}
            for k, t, a in zip(ks, tokens_K, accuracy_K, strict=True)
        ],
        "law": asdict(fit_log_law(tokens_K, accuracy_K)),
        "per_doubling": asdict(slope),
    }


def sentence(found: dict[str, Any]) -> str:
    """What the law says, for a person."""
    law, slope = found["law"], found["per_doubling"]
    end = (
        f"levelling off at {law['saturates_at']:.0f} tokens and {law['ceiling']:.1%}"
        if law["saturates_at"] is not None
        else f"still rising at {found['points'][-1]['tokens']:.0f} tokens"
    )
    fit = "no R2: flat" if law["r2"] is None else f"R2 {law['r2']:.3f}"
    return (
        f"{100 * slope['mean']:+.1f} points a doubling of the tokens "
        f"[{100 * slope['low']:+.1f}, {100 * slope['high']:+.1f}], {end}, {fit}"
    )


def draw_scaling(figures: dict[str, dict[str, Any]], path: str | Path) -> None:
    """Points and laws on a logarithmic axis of tokens."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (name, found) in enumerate(figures.items()):
        tokens = [point["tokens"] for point in found["points"]]
        axes.plot(tokens, [100 * p["accuracy"] for p in found["points"]], "o", color=f"C{i}")
        law = LogLaw(**found["law"])
        ends = {law.saturates_at} - {None}
        at = sorted({tokens[0], tokens[-1], *ends})
        axes.plot(at, [100 * law(t) for t in at], color=f"C{i}", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="completion tokens a question", ylabel="accuracy in %")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
