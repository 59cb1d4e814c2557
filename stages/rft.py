"""Rejection sampling fine-tuning: sample, train on the distinct right completions, repeat.

python -m stages.rft --config configs/nano/rft.yaml

STaR (arXiv:2203.14465) and RFT (arXiv:2308.01825). It needs answers and no worked solutions, as PPO
does, and is what PPO is compared with at the same number of samples. Each round has a folder:
round-N/samples.jsonl with all graded samples, round-N/kept.jsonl with what is trained on, and the
checkpoint round-N/sft. The last one is copied to output_dir. The same command continues an
interrupted run.
"""

import copy
import json
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from pipeline.runtime import one_line_errors, prepare_cpu, terminate_with_launcher, write_run_info

prepare_cpu()

import torch  # noqa: E402
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402

from pipeline.answers.settings import checks_fingerprint, problems_fingerprint  # noqa: E402
from pipeline.chat.template import set_default_thinking  # noqa: E402
from pipeline.chat.token_offsets import SPELLED_TAGS  # noqa: E402
from pipeline.config import DataConfig, ModelConfig, StageConfig, require  # noqa: E402
from pipeline.data.few_shot import apply_prompt  # noqa: E402
from pipeline.device import choose_dtype, use_device  # noqa: E402
from pipeline.folder_lock import lock_folder  # noqa: E402
from pipeline.hosts import require_one_process  # noqa: E402
from pipeline.model import load_policy, save_policy  # noqa: E402
from pipeline.model.atomic import weights_fingerprint  # noqa: E402
from pipeline.model.inference import cast  # noqa: E402
from pipeline.progress import Progress  # noqa: E402
from pipeline.records import Problem  # noqa: E402
from pipeline.rft.config import RFTConfig  # noqa: E402
from pipeline.rft.sampling import draw_samples  # noqa: E402
from pipeline.rft.selection import SampleRow, kept_solutions, newest_distinct  # noqa: E402
from pipeline.sft.trainer import ReasoningSFTConfig  # noqa: E402
from stages import sft  # noqa: E402
from stages.common import end_processes, gguf_source, load_model, parse, print_summary  # noqa: E402
from stages.next_steps import evaluation_after  # noqa: E402
from stages.preflight import check_start, require_no_evaluation  # noqa: E402
from stages.rft_folder import RoundFigures, begin, finished_rounds, store_round  # noqa: E402
from stages.training_problems import describe, training_problems  # noqa: E402

DEFAULT_CONFIG = "configs/nano/rft.yaml"
# Fields that stages.rft sets itself, or that belong to new models.
WITHOUT_EFFECT = (
    "direct_share",
    "energy_country",
    "energy_intensity",
    "nano_hidden_size",
    "nano_layers",
    "nano_heads",
    "nano_intermediate_size",
    "nano_rope_theta",
    "nano_vocab_size",
    "nano_window",
    "num_train_epochs",
    "push_to_hub",
    "self_correction_share",
)
REFUSED = ("streaming", "think")


def run(
    model_config: ModelConfig,
    data: DataConfig,
    config: RFTConfig,
    args: ReasoningSFTConfig,
    stage: StageConfig | None = None,
) -> Path:
    """Sample and train in rounds, save one checkpoint folder, return it."""
    dry_run = stage is not None and stage.dry_run
    with nullcontext() if dry_run else lock_folder(args.output_dir):
        return _run(model_config, data, config, args, stage or StageConfig())


def _run(
    model_config: ModelConfig,
    data: DataConfig,
    config: RFTConfig,
    args: ReasoningSFTConfig,
    stage: StageConfig,
) -> Path:
    start, folder = time.perf_counter(), Path(args.output_dir)
    require(
        model_config.model != "nano",
        "model=nano is untrained, and none of its samples would be right; give --model "
        "runs/nano/sft",
    )
    require_one_process("stages.rft")
    require(
        data.few_shot is None,
        f"few_shot={data.few_shot} reads worked solutions; store examples with stages.sft first, "
        "and leave it out here",
    )
    require(data.think, "think=false trains on answers alone, which is SFT; leave it out for RFT")
    require(
        not data.streaming,
        "streaming=true is for SFT: RFT draws its questions from all rows; leave it out, and give "
        "--size N to read the first N rows only",
    )
    require_no_evaluation(args, "stages.rft")
    args.num_train_epochs, args.push_to_hub = config.round_epochs, False
    # Of the data only questions and answers are read; SFT trains the sampled thoughts.
    data = replace(data, direct_share=0.0, self_correction_share=0.0)
    own = replace(stage, energy_country=None, energy_intensity=None)  # not measured
    check_start(model_config, args, own, training="RFT")
    problems = training_problems(data, args.seed)
    model, tokenizer = load_model(model_config, value_head="optional")
    begun_with = gguf_source(model)
    count = min(config.questions_per_round or len(problems), len(problems))
    samples = count * config.completions_per_question
    work = f"RFT on {describe(problems)}: {config.rounds} rounds of {samples:,} samples"
    if stage.dry_run:
        print("\ndry run: everything was loaded and checked, nothing was sampled or trained")
        print(f"  model: {model.num_parameters():,} parameters\n  work: {work}")
        print(f"  would be written to: {folder}\nnext: the same command without --dry_run")
        return folder
    begin(
        folder,
        model_config,
        data,
        config,
        args,
        weights=weights_fingerprint(model, value_head=False),
        problems=problems_fingerprint(problems) + checks_fingerprint(problems),
        overwrite=stage.overwrite_output_dir,
    )
    print(work)
    apply_prompt(tokenizer, data)
    set_default_thinking(tokenizer, True)
    figures = finished_rounds(folder)
    solutions: list[Problem] = []
    policy = model_config
    control = [*tokenizer.chat_control_tokens, tokenizer.eos_token, *SPELLED_TAGS]
    for number in range(1, config.rounds + 1):
        place = folder / f"round-{number}"
        if number > 1 and number > len(figures):
            model, tokenizer = load_policy(policy.model, value_head="optional")
        rows = _samples(model, tokenizer, problems, config, args, place, number, count)
        kept = kept_solutions(problems, rows, most=config.max_kept, control_tokens=control)
        every = [*solutions, *kept]
        solutions = newest_distinct(every, most=config.max_kept) if config.accumulate else kept
        if number > len(figures):
            require(
                bool(solutions),
                f"none of the {len(rows):,} samples of round {number} is right, so there is "
                "nothing to train on; start from a better checkpoint, or sample more with "
                "completions_per_question",
            )
            base = model_config if config.restart else policy
            _train(base, data, args, place, solutions)
            figures.append(store_round(folder, figures, rows, kept, solutions))
            print(f"round {number}: {_line(figures[-1])}")
        policy = replace(model_config, model=str(place / "sft"), model_revision=None)
    trained, tokenizer = load_policy(policy.model, value_head="optional")
    save_policy(trained, tokenizer, folder)
    write_run_info(folder, model=model_config, data=data, rft=config, sft=args, **begun_with)
    lines: dict[str, object] = {f"round {f['round']}": _line(f) for f in figures}
    lines["samples"] = f"{sum(f['samples'] for f in figures):,}"
    lines["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print_summary("RFT checkpoint", folder, lines, evaluation_after(folder, data))
    return folder


def _samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: RFTConfig,
    args: ReasoningSFTConfig,
    place: Path,
    number: int,
    count: int,
) -> list[SampleRow]:
    """The samples of a round; those that are stored are read, not sampled again. They are made in
    bfloat16 where training computes in it."""
    stored, device = model.dtype, use_device("auto")
    cast(model, torch.bfloat16 if args.bf16 else choose_dtype("auto", stored, device))
    total = count * config.completions_per_question
    with Progress(total, f"round {number}: sampling", unit="completions") as bar:
        return draw_samples(
            model.to(device).eval(),
            tokenizer,
            problems,
            round_questions(len(problems), count, number, args.seed),
            config,
            place / "samples.jsonl",
            seed=args.seed,
            round_number=number,
            progress=bar.advance,
        )


def round_questions(total: int, count: int, number: int, seed: int) -> list[int]:
    """Indices of the questions of round `number` (from 1): the next `count` of a shuffle, which
    starts again where all were used.

    >>> first, second = (round_questions(4, 2, number, seed=0) for number in (1, 2))
    >>> sorted(first + second)
    [0, 1, 2, 3]
    """
    order = list(range(total))
    random.Random(f"{seed}/rft").shuffle(order)
    return [order[((number - 1) * count + k) % total] for k in range(count)]


def _train(
    base: ModelConfig,
    data: DataConfig,
    args: ReasoningSFTConfig,
    place: Path,
    solutions: list[Problem],
) -> None:
    """Fine-tune `base` on the solutions into place/sft; an interrupted training is resumed."""
    place.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"question": s.prompt, "answer": s.answer, "thought": s.thought}) + "\n"
        for s in solutions
    )
    (place / "kept.jsonl").write_text("".join(lines), encoding="utf-8")
    folder = place / "sft"
    if (folder / "run.json").is_file():  # saved, and the run was stopped before it was counted
        return
    own = copy.copy(args)
    own.output_dir = str(folder)
    sft.run(base, data, own, problems=solutions, following="")


def _line(figures: RoundFigures) -> str:
    return (
        f"{figures['right']:.1%} of {figures['samples']:,} samples right, "
        f"{figures['solved']:.1%} of the questions solved, {figures['kept']:,} distinct kept, "
        f"trained on {figures['trained_on']:,}"
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune on the policy's own right completions, as the command line says."""
    terminate_with_launcher()
    classes = (ModelConfig, DataConfig, RFTConfig, ReasoningSFTConfig, StageConfig)
    configs = parse(classes, DEFAULT_CONFIG, argv, without_effect=WITHOUT_EFFECT, refused=REFUSED)
    run(*configs)
    end_processes()


if __name__ == "__main__":
    main()
