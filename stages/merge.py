"""Save one plain checkpoint folder: of LoRA adapters merged into their model, or of shards (FSDP2).

python -m stages.merge --adapter runs/small/ppo/checkpoint-40 --output_dir runs/small/merged

A training does this at its end; this script is for a checkpoint before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

from pipeline.config import Required, check_types, require
from pipeline.device import DTYPES
from pipeline.folder_lock import lock_folder
from pipeline.hosts import require_one_process
from pipeline.hub import read_run
from pipeline.model import load_adapters, load_policy, merge_adapters, save_policy
from pipeline.model.shards import is_sharded_checkpoint
from pipeline.model.trust import ADAPTER_CONFIG
from pipeline.runtime import one_line_errors, write_json
from pipeline.training.output_folder import require_no_model
from stages.common import parse, print_summary
from stages.next_steps import command


@dataclass
class MergeConfig:
    """The adapters or shards, and the folder of the whole model."""

    adapter: Required = HfArg(
        default="", help="checkpoint-N with adapter_config.json, or of a run with FSDP2"
    )
    output_dir: Required = HfArg(default="", help="checkpoint folder to write")
    base: str | None = HfArg(
        default=None, help="model of the adapters; default: the one they were trained on"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = HfArg(
        default="float32",
        help="dtype of the model that adapters are added to; 16 bits round small changes away. "
        "Shards (FSDP2) keep theirs",
    )

    def __post_init__(self) -> None:
        check_types(self)
        require(
            Path(self.adapter).absolute() != Path(self.output_dir).absolute(),
            f"output_dir={self.output_dir} is the folder of the adapters; give another",
        )


def run(config: MergeConfig) -> Path:
    """Merge, save one checkpoint folder, return it."""
    require_one_process("stages.merge")
    folder, adapter = Path(config.output_dir), Path(config.adapter)
    whole = is_sharded_checkpoint(adapter) and not (adapter / ADAPTER_CONFIG).exists()
    with lock_folder(folder):
        require_no_model(folder)
        if whole:
            model, tokenizer = load_policy(adapter, value_head="optional")
        else:
            adapted, tokenizer = load_adapters(
                config.adapter, config.base, dtype=DTYPES[config.dtype]
            )
            model = merge_adapters(adapted)
        save_policy(model, tokenizer, folder)
        if run := read_run(adapter):  # the training, which a model card describes
            write_json(folder / "run.json", run)
    following = command("eval.run", checkpoint=folder, suite="nano", output_dir=folder / "eval")
    print_summary("merged checkpoint", folder, {}, following)
    return folder


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Merge the adapters that the command line names."""
    run(*parse((MergeConfig,), "", argv))


if __name__ == "__main__":
    main()
