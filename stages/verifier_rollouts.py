"""The samples that stages.verifier stores and reads again: FILE.jsonl with FILE.settings.json.

They are of one policy and of one list of problems, so they are used again only for these.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.answers.settings import checks_fingerprint, problems_fingerprint
from pipeline.chat.prompt_settings import template_fingerprint
from pipeline.config import require
from pipeline.model.atomic import checkpoints, weights_fingerprint
from pipeline.records import Problem
from pipeline.runtime import config_names, naming_damage, read_object, write_json
from pipeline.training.run_settings import difference, differing
from pipeline.verifier.offline import Sample, VerifierConfig


def policy_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, object]:
    """The fingerprints of a policy, whatever its value head is."""
    return {
        "weights": weights_fingerprint(model, value_head=False),
        "chat_template": template_fingerprint(tokenizer),
    }


def sampling_settings(problems: Sequence[Problem], config: VerifierConfig) -> dict[str, object]:
    """What decides the samples of a policy."""
    names = ("completions_per_question", "temperature", "max_completion_length", "seed")
    settings = {name: getattr(config, name) for name in names}
    settings |= {"checks": checks_fingerprint(problems)}
    return settings | {"problems": problems_fingerprint(problems)}


def settings_file(path: Path) -> Path:
    """The file of the settings beside a file of samples.

    >>> settings_file(Path("verifier/rollouts.jsonl")).as_posix()
    'verifier/rollouts.settings.json'
    """
    return path.with_suffix(".settings.json")


def is_verifier_folder(folder: Path) -> bool:
    """Whether a folder holds a run of stages.verifier, finished or not, which may be written again.

    Its run.json names the policy as `source`; an unfinished run has stored samples and no run.json.
    """
    if not (folder / "run.json").is_file():
        return settings_file(folder / "rollouts.jsonl").is_file() and not checkpoints(folder)
    return {"source", "verifier"} <= config_names(folder)


def read_rollouts(path: Path, settings: Mapping[str, object], remedy: str) -> list[Sample]:
    """The stored samples. Those of earlier versions have no settings and are not compared.

    Raises:
        ValueError: they were made with other settings, or a file is damaged; the message ends in
            the remedy.
    """
    stored = settings_file(path)
    if stored.is_file():
        then = read_object(stored, remedy)
        names, _ = differing(then, settings)
        require(not names, f"{path} has samples with {difference(then, settings, names)}; {remedy}")
    else:
        print(f"{stored} is missing: {path} is not compared with the policy")
    with naming_damage(path, remedy):
        lines = path.read_text(encoding="utf-8").splitlines()
        samples = [Sample(**json.loads(line)) for line in lines]
    print(f"{len(samples):,} samples from {path}")
    return samples


def write_rollouts(path: Path, settings: Mapping[str, object], samples: Sequence[Sample]) -> None:
    """Write settings and samples, in this order: no samples are without their settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings_file(path), settings)
    staged = path.with_name(f"{path.name}.tmp")
    staged.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    staged.replace(path)
