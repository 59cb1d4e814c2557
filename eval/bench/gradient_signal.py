"""Measure how much signal the policy gradient of a checkpoint has, for each advantage estimator.

python -m eval.bench signal --checkpoint runs/nano/sft --dataset nano
python -m eval.bench signal --checkpoint runs/nano/sft --recipes configs/nano/ppo.yaml,mine.yaml

Completions are sampled once. Each estimator makes its advantages from the same samples; gradients
are those of PPO's policy loss in the first update. docs/benchmarks.md explains the tables.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.bench.estimators import Estimator, Sampling, estimator_batch
from eval.bench.policy_gradients import policy_gradients, supervised_gradients
from eval.bench.signal_figures import (
    EstimatorFigures,
    SignalFigures,
    batch_figures,
    batch_table,
    noise_of,
    noise_table,
    suggested_rollout,
)
from eval.bench.signal_options import SignalConfig, read_problems
from eval.run import load_checkpoint
from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK
from pipeline.cli import CommandParser
from pipeline.data.sft_examples import sft_dataset
from pipeline.generation import Sampler
from pipeline.model import has_value_head
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.supervised import SupervisedPart
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, prepare_cpu, set_threads, write_json

# Options of PPO with an effect on the advantages of given samples.
SHOWN = (
    *("gamma", "lam", "lam_alpha", "step_lam", "rloo_baseline", "normalize_advantages"),
    *("value_source", "monte_carlo_samples", "policy_token_share"),
    *("zero_variance_groups", "mask_truncated_completions", "overlong_penalty", "overlong_buffer"),
)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: SignalConfig,
    estimators: Mapping[str, Estimator],
    asked: Sequence[Problem],
    solved: Sequence[Problem],
) -> SignalFigures:
    """Return the figures of the samples, of the SFT gradient and of each estimator.

    Args:
        asked: problems to sample; solved: problems with worked solutions, or none.
    """
    begin = time.perf_counter()
    sampler = Sampler(
        model,
        tokenizer,
        temperature=config.temperature,
        max_new_tokens=config.max_completion_length,
        seed=config.seed,
    )
    prompts = encode_prompts(tokenizer, [problem.prompt for problem in asked])
    rollout = sampler.sample(prompts, group=config.completions_per_question)
    sampled = time.perf_counter()
    sampling = Sampling(
        model, tokenizer, config.temperature, config.max_completion_length, config.seed
    )
    made = {
        name: estimator_batch(estimator, rollout, asked, tokenizer, sampler.eos_ids, sampling)
        for name, estimator in estimators.items()
    }
    sizes, group = config.sizes(), config.completions_per_question
    gradients, entropy = policy_gradients(
        model,
        rollout,
        {name: batch for name, (batch, _) in made.items()},
        count=config.questions // sizes[0],
        micro_batch_size=config.micro_batch_size,
        temperature=config.temperature,
    )
    sft_MK = None
    if solved:
        rows, _ = sft_dataset(tokenizer, solved, progress=False)
        end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
        size = config.supervised_batch_size
        part = SupervisedPart(rows, batch_size=size, end_think_id=end_think_id, seed=0)
        sft_MK = supervised_gradients(model, part, len(solved) // size)
    found = {}
    for name, gradients_NK in gradients.items():
        noise = noise_of(gradients_NK, sizes[0] * group)
        direction, batches = batch_figures(gradients_NK, sft_MK, noise, sizes=sizes, group=group)
        metrics = made[name][1]
        found[name] = EstimatorFigures(
            rewards=dict(estimators[name].rewards),
            options=changed_options(estimators[name].options),
            mean_reward=metrics["mean_reward"],
            zero_variance=metrics["groups/zero_variance"],
            noise=noise,
            cosine_with_sft=direction,
            batches=batches,
        )
    lengths_B = rollout.mask_completion_BC.sum(dim=1).float()
    return SignalFigures(
        completions=len(lengths_B),
        mean_length=lengths_B.mean().item(),
        truncated=rollout.truncated_B.float().mean().item(),
        entropy=entropy,
        sampling_seconds=sampled - begin,
        gradient_seconds=time.perf_counter() - sampled,
        sft_noise=None if sft_MK is None else noise_of(sft_MK, config.supervised_batch_size),
        estimators=found,
    )


def changed_options(options: PPOOptions) -> dict[str, object]:
    """Return the options of advantages that differ from PPO's defaults."""
    defaults = {field.name: field.default for field in fields(PPOOptions)}
    found = {name: getattr(options, name) for name in SHOWN}
    return {name: value for name, value in found.items() if value != defaults[name]}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure as the command line says; print two tables, write JSON."""
    prepare_cpu()
    (config,) = CommandParser(SignalConfig).parse_args_and_config(argv)
    set_threads(config.threads)
    estimators = config.chosen()
    asked, solved = read_problems(config)
    model, tokenizer = load_checkpoint(config.checkpoint, config)
    if not has_value_head(model):
        print("without a value head V is 0 in every estimator, as that of a new value head")
    figures = measure(model, tokenizer, config, estimators, asked, solved)
    path = Path(config.output or f"runs/bench/signal-{Path(config.checkpoint).name}.json")
    write_json(path, {"arguments": asdict(config), "figures": asdict(figures)})
    seconds = figures.sampling_seconds + figures.gradient_seconds
    print(
        f"{figures.completions:,} completions of {figures.mean_length:.0f} tokens "
        f"({figures.truncated:.1%} truncated), entropy {figures.entropy:.3f} nats per token; "
        f"{seconds / 60:.1f} minutes"
    )
    print(f"\n{noise_table(figures)}\n\n{batch_table(figures)}\n")
    print(f"{suggested_rollout(figures, config.completions_per_question)}\nall figures: {path}")


if __name__ == "__main__":
    main()
