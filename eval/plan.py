"""Memory and time of a training run, computed from its configuration without loading a model.

python -m eval.plan --config small/ppo.yaml --gpus 8 --gpu_memory 80

Nothing is loaded: parameters are counted on the meta device, the rest follows from the formulas of
`pipeline.planning`. Times are lower limits: loading, grading and checkpoints come on top.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers.hf_argparser import HfArg

from eval.tables import Table, markdown_table
from pipeline.cli import CommandParser
from pipeline.config import PositiveFloat, PositiveInt, check_types, require
from pipeline.planning.from_config import RunPlan, run_plan
from pipeline.planning.memory import (
    Method,
    Plan,
    Strategy,
    activation_bytes,
    logit_bytes,
    longest_sequence,
    model_state,
    sampled_together,
)
from pipeline.planning.speed import Hardware, rollout_seconds, training_seconds
from pipeline.runtime import one_line_errors

GIB = 2**30
PARTS = ("training", "weights", "gradients", "optimizer", "reference", "copies")


@dataclass(kw_only=True)
class PlanArguments:
    """The GPUs, and what a configuration leaves open. `--config FILE` is the training's own."""

    gpus: PositiveInt = HfArg(default=1, help="number of GPUs")
    gpu_memory: PositiveFloat = HfArg(default=80.0, help="GiB of one GPU")
    model: str | None = HfArg(
        default=None, help="in place of the configuration's: a folder, a Hub id, or nano"
    )
    rows: PositiveInt | None = HfArg(
        default=None,
        help="training examples, where the configuration gives epochs and no size of an SFT",
    )
    tokens: PositiveInt | None = HfArg(
        default=None, help="mean tokens of a completion or example; default: the most allowed"
    )
    tflops: PositiveFloat = HfArg(default=989.0, help="bfloat16 TFLOP/s of one GPU (H100)")
    bandwidth: PositiveFloat = HfArg(default=3350.0, help="GB/s of its memory (H100)")
    used_flops: PositiveFloat = HfArg(default=0.3, help="share of the TFLOP/s that is reached")
    used_bandwidth: PositiveFloat = HfArg(
        default=0.5, help="share of the bandwidth that is reached"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("used_flops", "used_bandwidth"):
            require(getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be at most 1")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan of a configuration as Markdown tables."""
    words, config = _without_config(list(sys.argv[1:] if argv is None else argv))
    (args,) = CommandParser(PlanArguments).parse_args_and_config(words)
    require(
        config is not None, "no configuration; give --config FILE, as in --config small/ppo.yaml"
    )
    run = run_plan(
        cast(str, config), args.gpus, model=args.model, rows=args.rows, tokens=args.tokens
    )
    gpu = Hardware(args.tflops * 1e12, args.bandwidth * 1e9, args.used_flops, args.used_bandwidth)
    print("\n".join(report(run, args.gpus, args.gpu_memory * GIB, gpu)))


def report(run: RunPlan, gpus: int, gpu_bytes: float, gpu: Hardware) -> list[str]:
    """The lines that the command prints."""
    shape, plan = run.plan.shape, run.plan
    lines = [
        f"{run.stage} of {shape.name}: {shape.parameters:,} parameters, {plan.trained:,} trained "
        f"({plan.method}); {shape.layers} layers of {shape.hidden}, vocabulary {shape.vocab:,}",
        f"KV cache: {shape.kv_bytes():,} bytes a token; activations: "
        f"{activation_bytes(plan):,.0f} bytes a token of a micro-batch",
        "",
        f"GiB on each of {gpus} GPUs of {gpu_bytes / GIB:g} GiB (ZeRO: not run here).",
        "The longest sequence is one in an update. Sampled together: sequences of that length; "
        + ("as the configuration has it." if run.fixed_rows else "fewer where memory is short."),
        "",
        markdown_table(memory_table(run, gpus, gpu_bytes)),
        "",
    ]
    return lines + time_lines(run, gpus, gpu)


def memory_table(run: RunPlan, gpus: int, gpu_bytes: float) -> Table:
    """One row for each way to train: parts in GiB and the longest sequence in tokens."""
    titles = ("fixed", "sum", "MB a token", "longest sequence", "sampled together")
    rows, most = [[*PARTS, *titles]], rows_of_a_gpu(run, gpus)
    for method, strategy in ways(run.plan, gpus):
        plan = replace(run.plan, method=method)
        state = model_state(plan, strategy, gpus)
        least = most if run.fixed_rows else 1
        longest = longest_sequence(plan, strategy, gpus, gpu_bytes, least)
        together = sampled_together(plan, strategy, gpus, gpu_bytes, longest, most)
        parts = [state.weights, state.gradients, state.optimizer, state.reference, state.copies]
        per_token = activation_bytes(plan) + logit_bytes(plan, strategy)
        gib = [f"{x / GIB:.1f}" for x in [*parts, state.fixed, state.total]]
        fits = f"{longest:,}" if longest else "does not fit"
        cells = [f"{per_token / 1e6:.2f}", fits, f"{together}" if longest else ""]
        rows.append([f"{method}, {strategy}", *gib, *cells])
    return rows


def ways(plan: Plan, gpus: int) -> list[tuple[Method, Strategy]]:
    """What can be trained on so many GPUs; the configuration's own method first."""
    strategies: list[Strategy] = ["one GPU"]
    if gpus > 1:
        strategies = ["DDP", "FSDP2", "ZeRO-2", "ZeRO-3"]
    methods: list[Method] = sorted(("full", "LoRA", "QLoRA"), key=lambda m: m != plan.method)
    return [
        (method, strategy)
        for method in methods
        for strategy in strategies
        if method != "QLoRA" or strategy in ("one GPU", "DDP")
    ]


def rows_of_a_gpu(run: RunPlan, gpus: int) -> int:
    """Most sequences that one GPU decodes together; 1 where nothing is sampled."""
    if run.rollout is None:
        return 1
    return min(-(-run.rollout.sequences // gpus), run.rollout.sampled_together)


def time_lines(run: RunPlan, gpus: int, gpu: Hardware) -> list[str]:
    """Tokens a second and hours, by part of the work."""
    if run.rollout is not None:
        parts = rollout_seconds(run.plan, run.rollout, gpus, gpu)
        seconds = sum(parts.values())
        sampled = run.rollout.sequences * run.rollout.tokens
        split = ", ".join(f"{name} {value:.1f} s" for name, value in parts.items())
        return [
            f"a rollout of {run.rollout.sequences:,} completions of {run.rollout.tokens:,} tokens: "
            f"{seconds:.1f} s ({split}), {sampled / seconds:,.0f} sampled tokens a second",
            f"{run.num_rollouts:,} rollouts: {run.num_rollouts * seconds / 3600:.2f} hours",
        ]
    if run.tokens is None:
        return ["hours: the configuration gives epochs; give --rows, the number of examples"]
    seconds = training_seconds(run.plan, run.tokens, run.length, gpus, gpu)
    return [
        f"{run.tokens:,.0f} tokens in sequences of {run.length:,}: {seconds / 3600:.2f} hours, "
        f"{run.tokens / seconds:,.0f} tokens a second"
    ]


def _without_config(words: list[str]) -> tuple[list[str], str | None]:
    """(the other arguments, the value of --config)."""
    for i, word in enumerate(words):
        if word.startswith("--config="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
        if word == "--config":
            return words[:i] + words[i + 2 :], words[i + 1] if i + 1 < len(words) else None
    return words, None


if __name__ == "__main__":
    main()
