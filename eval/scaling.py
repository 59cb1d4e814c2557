"""Accuracy against inference tokens: majority-vote curve, fitted scaling law and plot.

python -m eval.scaling --samples SFT=runs/nano/samples/sft,PPO=runs/nano/samples/ppo \\
    --output runs/nano/scaling.json

Reads folders written by eval.samples; writes JSON, and a PNG with the same name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure
from transformers.hf_argparser import HfArg

from eval.compare import parse_folders
from eval.report_page.curves import COLOURS, add_legend, new_plot
from eval.row_types import SamplesRow, ScalingResult
from eval.run_folder import read_run
from eval.samples import majority_curve, powers_of_two
from pipeline.cli import CommandParser
from pipeline.config import Required, check_types, require
from pipeline.runtime import one_line_errors, write_json
from pipeline.stats.scaling_law import LogLaw, fit_log_law, per_doubling_interval


@dataclass(kw_only=True)
class ScalingArguments:
    """Samples to fit, and the file of the results."""

    samples: Required = HfArg(default="", help="NAME=DIR of eval.samples, separated by commas")
    output: Required = HfArg(default="", help="JSON file to write; the plot goes beside it")

    def __post_init__(self) -> None:
        check_types(self)
        parse_folders("samples", self.samples)
        require(
            Path(self.output).suffix != ".png",
            f"output={self.output!r} is the JSON file, and the plot beside it ends in .png; give a "
            "name that ends in .json",
        )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Fit the law of every named folder, write JSON and plot, print one line each."""
    (args,) = CommandParser(ScalingArguments).parse_args_and_config(argv)
    results = {
        name: scaling_result(read_run(folder, "samples")[1])
        for name, folder in parse_folders("samples", args.samples).items()
    }
    output = Path(args.output)
    write_json(output, results)
    plot_scaling(results).savefig(output.with_suffix(".png"), dpi=150)
    for name, result in results.items():
        print(f"{name}: {describe_law(result)}")
    print("->", output)


def scaling_result(rows: Sequence[SamplesRow]) -> ScalingResult:
    """Accuracy of majority votes of 1, 2, 4, ... samples, and the law fitted to these points."""
    n = min(len(row["samples"]) for row in rows)
    ks = powers_of_two(n)
    curve_QK = majority_curve(rows, ks)
    spent = [s["tokens"] for row in rows for s in row["samples"]]
    tokens_K = [k * sum(spent) / len(spent) for k in ks]
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


def describe_law(result: ScalingResult) -> str:
    """One line: gain per doubling with interval, saturation, and R2."""
    law, slope = result["law"], result["per_doubling"]
    most = f"{result['points'][-1]['tokens']:.0f} tokens"
    rises, turn = law["per_doubling"] > 0, law["saturates_at"]
    if law["r2"] is None:
        end = f"flat up to {most}"
    elif turn is None:
        end = f"still {'rising' if rises else 'falling'} at {most}"
    elif rises:
        end = f"saturating at {turn:.0f} tokens and {law['ceiling']:.1%}"
    else:
        end = f"falling to {law['ceiling']:.1%} at {turn:.0f} tokens, then flat"
    fit = "no R2" if law["r2"] is None else f"R2 {law['r2']:.3f}"
    # Adding 0.0 turns -0.0 into 0.0.
    mean, low, high = (round(100 * slope[name], 1) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.1f} points per doubling of the tokens [{low:+.1f}, {high:+.1f}], {end}, {fit}"


def plot_scaling(
    results: Mapping[str, ScalingResult], figsize: tuple[float, float] = (6.4, 3.8)
) -> Figure:
    """Measured points and fitted laws by name, on a logarithmic axis of tokens."""
    figure, axes = new_plot(figsize, ylabel="accuracy in %")
    for i, (name, result) in enumerate(results.items()):
        colour = COLOURS[i % len(COLOURS)]
        tokens, accuracy = zip(
            *((p["tokens"], 100 * p["accuracy"]) for p in result["points"]), strict=True
        )
        law = LogLaw(**result["law"])
        # The law is straight on this axis, up to the saturation point and beyond it.
        bends = set() if law.saturates_at is None else {law.saturates_at}
        ends = sorted({tokens[0], tokens[-1]} | bends)
        axes.plot(tokens, accuracy, "o", color=colour)
        axes.plot(ends, [100 * law(t) for t in ends], color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("completion tokens per question")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    add_legend(figure)
    return figure


if __name__ == "__main__":
    main()
