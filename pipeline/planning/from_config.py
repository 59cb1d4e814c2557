"""Read from a training configuration what memory and time depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from pipeline.config_files import find_config, packaged_config, read_arguments, read_preset
from pipeline.model.nano import nano_config
from pipeline.planning.memory import Method, Plan
from pipeline.planning.shapes import dtype_bytes, find_shape
from pipeline.planning.speed import Rollout

# Defaults of the stages' own options; tests compare them with the option classes.
PPO_DEFAULTS: dict[str, int | float] = {
    "num_rollouts": 100,
    "questions_per_rollout": 32,
    "completions_per_question": 8,
    "ppo_epochs": 4,
    "max_completion_length": 256,
    "sampling_batch_size": 256,
    "kl_coef": 0.05,
}
MODEL_DEFAULTS: dict[str, int | float] = {
    "nano_hidden_size": 128,
    "nano_layers": 4,
    "nano_heads": 4,
    "nano_intermediate_size": 384,
    "nano_vocab_size": 640,
    "nano_window": 4096,
    "lora_r": 16,
}
OF_PPO = (*PPO_DEFAULTS, "preset", "rewards")
SFT_DEFAULTS: dict[str, int | float] = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "max_length": 1024,
}
PRETRAIN_DEFAULTS: dict[str, int | float] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "max_length": 512,
}
# Options of commands that are not planned: evaluation, recipe, rejection sampling, search, distill.
OF_OTHERS = ("checkpoint", "config_dir", "rounds", "step_tokens", "teacher")
OF_PRETRAIN = ("held_out_share", "near_duplicates", "shuffle_buffer")


@dataclass(frozen=True)
class RunPlan:
    """A stage with its model; `rollout` for PPO, `tokens` in all for SFT and pretraining."""

    stage: str
    plan: Plan
    length: int  # most tokens of a sequence
    rollout: Rollout | None = None
    num_rollouts: int = 0
    tokens: float | None = None  # None where the number of rows is not known
    fixed_rows: bool = False  # the sequences sampled together are given, and not as many as fit


def run_plan(
    path: str | Path,
    gpus: int,
    *,
    model: str | None = None,
    rows: int | None = None,
    tokens: int | None = None,
) -> RunPlan:
    """Return the plan of a configuration file.

    Args:
        gpus: processes, each with the batch size that the configuration gives.
        model: in place of that of the configuration.
        rows: training examples, where the configuration has epochs instead of steps; default: the
            `size` of an SFT.
        tokens: mean tokens of a sequence or completion; default: the most that it may have.

    Raises:
        ValueError: the file holds no arguments or is of another command, or its model is not found.
    """
    file = find_config(path)
    if not file.is_file():
        raise ValueError(f"--config {path} does not exist; give the YAML file of a training stage")
    given = read_arguments(file)
    if other := [name for name in OF_OTHERS if name in given]:
        raise ValueError(
            f"--config {path} sets {other[0]}, which no training that can be planned has; give the "
            "YAML file of pretraining, SFT or PPO"
        )
    is_ppo = any(name in given for name in OF_PPO)
    if given.get("preset") is not None:
        given = read_preset(packaged_config("presets"), str(given["preset"])) | given
    shape = find_shape(*_model_of(given, file, model))
    method: Method = "full"
    if given.get("load_in_4bit"):
        method = "QLoRA"
    elif given.get("use_peft"):
        method = "LoRA"
    number = _numbers(given)
    plan = Plan(
        shape=shape,
        method=method,
        lora_rank=int(number["lora_r"]),
        frozen_bytes=dtype_bytes(str(given.get("dtype", "float32"))),
        has_reference=is_ppo and number["kl_coef"] > 0,
        samples=is_ppo,
        mixed_precision=given.get("bf16") is not False,
        checkpointing=bool(given.get("gradient_checkpointing")),
    )
    if not is_ppo:
        is_pretraining = _is_pretraining(given, file)
        given = (PRETRAIN_DEFAULTS if is_pretraining else SFT_DEFAULTS) | given
        length = tokens or int(str(given["max_length"]))
        if not is_pretraining and rows is None and given.get("size") is not None:
            rows = int(str(given["size"]))
        stage = "pretraining" if is_pretraining else "SFT"
        return RunPlan(stage, plan, length, tokens=_tokens(given, gpus, length, rows))
    length = tokens or int(number["max_completion_length"])
    rollout = Rollout(
        sequences=int(number["questions_per_rollout"] * number["completions_per_question"]),
        tokens=length,
        epochs=int(number["ppo_epochs"]),
        sampled_together=int(number["sampling_batch_size"]),
    )
    return RunPlan(
        "PPO",
        plan,
        length + rollout.prompt_tokens,
        rollout,
        int(number["num_rollouts"]),
        fixed_rows=given.get("sampling_batch_size") is not None,
    )


def _is_pretraining(given: Mapping[str, object], file: Path) -> bool:
    """Whether a configuration is for stages.pretrain, by its own options or by its name."""
    names = (file.stem, Path(str(given.get("output_dir", ""))).name)
    return any(name in given for name in OF_PRETRAIN) or any("pretrain" in name for name in names)


def _numbers(given: Mapping[str, object]) -> dict[str, float]:
    defaults = PPO_DEFAULTS | MODEL_DEFAULTS
    found = {name: given.get(name) for name in defaults}
    return {
        name: float(str(value if found[name] is None else found[name]))
        for name, value in defaults.items()
    }


def _tokens(given: Mapping[str, object], gpus: int, length: int, rows: int | None) -> float | None:
    """Tokens of all steps; of all epochs where the number of rows is known; else None."""
    steps = int(str(given.get("max_steps", 0)))
    if steps > 0:
        batch = int(str(given["per_device_train_batch_size"]))
        batch *= int(str(given.get("gradient_accumulation_steps", 1)))
        return float(steps) * batch * gpus * length
    if rows is None:
        return None
    return float(str(given["num_train_epochs"])) * rows * length


def _model_of(
    given: Mapping[str, object], file: Path, model: str | None
) -> tuple[str, PreTrainedConfig]:
    """(model, architecture of nano): of a run that does not exist yet, those of the configuration
    beside this file that makes it."""
    name = model or str(given.get("model", "nano"))
    seen: set[str] = set()
    while name not in seen and not (Path(name) / "config.json").is_file():
        seen.add(name)
        for other in sorted(file.parent.glob("*.yaml")):
            made = read_arguments(other)
            if made.get("output_dir") == name:
                given, name = made, str(made.get("model", "nano"))
                break
    sizes = _numbers(given)
    return name, nano_config(
        vocab_size=int(sizes["nano_vocab_size"]),
        hidden_size=int(sizes["nano_hidden_size"]),
        num_hidden_layers=int(sizes["nano_layers"]),
        num_attention_heads=int(sizes["nano_heads"]),
        intermediate_size=int(sizes["nano_intermediate_size"]),
        max_position_embeddings=int(sizes["nano_window"]),
    )
