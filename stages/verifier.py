"""Fit a value head and a verifier to samples of a trained policy, for search.

python -m stages.verifier --checkpoint runs/nano/ppo --output_dir runs/nano/verifier

The policy is not changed. The output folder is the same checkpoint with a new value head and a
verifier, `rollouts.jsonl` with the samples, and `verifier.json` with the figures on held-out
questions. The same command again uses the stored samples; those of another policy, of other
problems or of other settings of sampling are refused.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from pipeline.config import DataConfig, Required, check_types, require
from pipeline.device import choose_device, choose_dtype, use_device
from pipeline.folder_lock import lock_folder
from pipeline.hosts import require_one_process
from pipeline.model import (
    attach_value_head,
    attach_verifier,
    has_value_head,
    load_policy,
    save_policy,
)
from pipeline.model.inference import cast
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, set_threads, write_json, write_run_info
from pipeline.stats.value_metrics import value_metrics
from pipeline.training.output_folder import require_no_model
from pipeline.verifier.offline import (
    FINAL_STEP,
    Sample,
    States,
    VerifierConfig,
    draw_samples,
    fit_value_head,
    fit_verifier,
    read_states,
)
from stages.common import parse, print_summary
from stages.next_steps import command, suites_of
from stages.preflight import require_reasoning_tokens
from stages.training_problems import describe, training_problems
from stages.verifier_rollouts import (
    is_verifier_folder,
    policy_settings,
    read_rollouts,
    sampling_settings,
    write_rollouts,
)

DEFAULT_CONFIG = "configs/nano/verifier.yaml"
# Fields of the prompt, of thoughts and of streams: only questions and answers are read here.
REFUSED = ("few_shot", "system_prompt", "chat_template")
WITHOUT_EFFECT = ("streaming", "think", "direct_share", "self_correction_share")


@dataclass
class SourceConfig:
    """The policy that the verifier is fitted to."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder of the policy")
    device: str = HfArg(
        default="auto", help="auto, cpu, or an accelerator: cuda, cuda:1, mps, xpu, npu"
    )

    def __post_init__(self) -> None:
        check_types(self)
        choose_device(self.device)


def run(source: SourceConfig, data: DataConfig, config: VerifierConfig) -> Path:
    """Sample, fit, measure on held-out questions and save; return the folder."""
    require_one_process("stages.verifier")
    with lock_folder(config.output_dir):
        return _run(source, data, config)


def _run(source: SourceConfig, data: DataConfig, config: VerifierConfig) -> Path:
    start = time.perf_counter()
    set_threads()
    _require_stored_prompt(data)
    folder = Path(config.output_dir)
    require(
        folder.absolute() != Path(source.checkpoint).absolute(),
        f"output_dir={folder} is the folder of the policy; give another one",
    )
    if not is_verifier_folder(folder):
        require_no_model(folder)
    model, tokenizer = load_policy(source.checkpoint, value_head="optional")
    require_reasoning_tokens(tokenizer, source.checkpoint, "the verifier", option="checkpoint")
    policy = policy_settings(model, tokenizer)
    stored, device = model.dtype, use_device(source.device)
    cast(model, choose_dtype("auto", stored, device))
    model = model.to(device)
    had_values = has_value_head(model)
    attach_value_head(model)  # read_states records its input
    problems = partial(training_problems, data, config.seed)
    samples = _samples(model, tokenizer, problems, config, policy)
    states = read_states(model, tokenizer, samples)
    train, test = _split(states, config)
    figures = {"old value head": measure(test, _values(model, test))} if had_values else {}

    head = fit_value_head(train, config)
    attach_value_head(model, head)
    verifier = fit_verifier(train, _values(model, train), config)
    values_N = _values(model, test)
    figures["value head"] = measure(test, values_N)
    figures["likelihood"] = measure(test, _likelihood(test))
    with torch.no_grad():
        figures["verifier"] = measure(test, verifier(test.features(values_N)))

    attach_verifier(model, verifier)
    cast(model, stored)
    save_policy(model, tokenizer, folder)
    write_json(folder / "verifier.json", figures)
    write_run_info(folder, source=source, data=data, verifier=config)
    lines: dict[str, object] = {name: _line(found["last token"]) for name, found in figures.items()}
    lines["minutes"] = round((time.perf_counter() - start) / 60, 1)
    suites = suites_of(data.dataset)
    following = command(
        "eval.verifier",
        checkpoint=folder,
        suite=suites[0] if suites else None,
        data_root=data.data_root,
        output_dir=folder / "quality",
    )
    if not suites:
        following += "  # or --suite FILE, of questions that were not trained on"
    print_summary("verifier", folder, lines, following)
    return folder


def measure(states: States, values_N: torch.Tensor) -> dict[str, dict[str, float]]:
    """Figures of predicted values at the last token and after the second step of each thought."""
    places = {"last token": states.step_N == FINAL_STEP, "second step": states.step_N == 2}
    return {
        name: value_metrics(
            *(x_N[here].numpy() for x_N in (values_N, states.right_N, states.question_N))
        )
        for name, here in places.items()
        if here.any()
    }


def _require_stored_prompt(data: DataConfig) -> None:
    """Raise ValueError for another prompt than the one that the policy was trained with."""
    for name in ("system_prompt", "few_shot", "chat_template"):
        value = getattr(data, name)
        require(
            value in (None, "own"),
            f"{name}={value} would change the prompt, and the verifier is fitted to the policy "
            "with the prompt stored in its checkpoint; leave it out, or train the policy with it",
        )


def _samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Callable[[], list[Problem]],
    config: VerifierConfig,
    policy: dict[str, object],
) -> list[Sample]:
    """The stored samples, or new ones, which are stored.

    Args:
        problems: reads the problems; not called for a file of samples that `rollouts` names.
        policy: as `policy_settings` returns it.
    """
    path = Path(config.rollouts or Path(config.output_dir) / "rollouts.jsonl")
    if config.rollouts is not None and path.is_file():
        remedy = "give samples of this policy, or leave out --rollouts"
        return read_rollouts(path, {"weights": policy["weights"]}, remedy)
    selected = problems()
    settings = policy | sampling_settings(selected, config)
    if path.is_file():
        remedy = f"give another --output_dir, or delete {path} to sample again"
        return read_rollouts(path, settings, remedy)
    print(f"sampling {config.completions_per_question} answers each to {describe(selected)}")
    total = len(selected) * config.completions_per_question
    with Progress(total, "sampling", unit="answers") as bar:
        samples = draw_samples(model, tokenizer, selected, config, bar.advance)
    write_rollouts(path, settings, samples)
    return samples


def _split(states: States, config: VerifierConfig) -> tuple[States, States]:
    """(states to fit, states to measure), with disjoint questions."""
    last = int(states.question_N.max()) + 1
    cut = round(last * (1 - config.held_out))
    require(
        0 < cut < last,
        f"held_out={config.held_out} of {last} questions leaves one side empty; raise --size",
    )
    fit = states.question_N < cut
    return states.select(fit.nonzero().squeeze(1)), states.select((~fit).nonzero().squeeze(1))


@torch.no_grad()
def _values(model: PreTrainedModel, states: States) -> torch.Tensor:
    return model.value_head(states.hidden_ND.to(model.device)).cpu()


def _likelihood(states: States) -> torch.Tensor:
    """Probability of each path under the policy: the baseline without a verifier, (N,)."""
    return torch.tensor([sum(logprobs) for logprobs, _, _ in states.paths_N]).exp()


def _line(found: dict[str, float]) -> str:
    return (
        f"within a question {found['within_question_auroc_mean']:.3f}, "
        f"pooled {found['auroc']:.3f}, explained variance {found['explained_variance']:.2f}, "
        f"calibration error {found['calibration_error']:.3f}, best of n {found['best_of_n']:.1%} "
        f"(mean {found['right']:.1%})"
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train the verifier as the command line says."""
    classes = (SourceConfig, DataConfig, VerifierConfig)
    run(*parse(classes, DEFAULT_CONFIG, argv, without_effect=WITHOUT_EFFECT, refused=REFUSED))


if __name__ == "__main__":
    main()
