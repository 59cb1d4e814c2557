"""Samples of a round, stored while they are made: an interrupted round continues where it was."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import encode_prompts
from pipeline.chat.token_offsets import decode_completions
from pipeline.generation import Sampler
from pipeline.records import Problem
from pipeline.rft.config import RFTConfig
from pipeline.rft.selection import SampleRow, is_right
from pipeline.runtime import naming_damage
from pipeline.training.determinism import seeded_generator

CHUNK = 64  # questions that are sampled together and stored together


def draw_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    indices: Sequence[int],
    config: RFTConfig,
    path: Path,
    *,
    seed: int,
    round_number: int,
    progress: Callable[[int], None],
) -> list[SampleRow]:
    """Return `completions_per_question` graded samples of each of the problems at `indices`.

    They are appended to `path` in chunks of CHUNK questions. Chunks that the file has are not
    sampled again. The random numbers of a chunk follow from seed, round and number, so that an
    interrupted run ends with the same samples.

    Args:
        progress: called with the number of completions after each chunk.
    """
    group = config.completions_per_question
    rows = stored_chunks(path, len(indices), group)
    progress(len(rows))
    sampler = Sampler(
        model,
        tokenizer,
        temperature=config.temperature,
        max_new_tokens=config.max_completion_length,
        batch_size=config.sampling_batch_size,
    )
    ends = set(sampler.eos_ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    for first in range(len(rows) // group, len(indices), CHUNK):
        chunk = list(indices[first : first + CHUNK])
        sampler.generator = seeded_generator(seed, "rft", round_number, first)
        prompts = encode_prompts(tokenizer, [problems[index].prompt for index in chunk])
        rollout = sampler.sample(prompts, group=group)
        made: list[SampleRow] = []
        for b, mask_C in enumerate(rollout.mask_completion_BC):
            ids = rollout.completion_ids_BC[b][mask_C].tolist()
            (text,) = decode_completions(tokenizer, [ids[:-1] if ids[-1] in ends else ids])
            index, truncated = chunk[b // group], bool(rollout.truncated_B[b])
            right = is_right(problems[index], text, truncated=truncated)
            made.append({"question": index, "completion": text, "right": right})
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in made))
        rows += made
        progress(len(made))
    return rows


def stored_chunks(path: Path, questions: int, group: int) -> list[SampleRow]:
    """Return the rows of the whole chunks in a file of `draw_samples`, and cut off the rest, which
    a kill may have left. Raises ValueError for a damaged row."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    full = len(whole) // (CHUNK * group) * CHUNK
    kept = whole[: questions * group if len(whole) >= questions * group else full * group]
    if len(kept) < len(lines):
        path.write_text("".join(kept), encoding="utf-8")
    with naming_damage(path, "give --overwrite_output_dir true to start again"):
        return [json.loads(line) for line in kept]
