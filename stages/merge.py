"""Put LoRA adapters into the weights of their model: one plain checkpoint folder.

python -m stages.merge --adapter runs/small/ppo/checkpoint-40 --output_dir runs/small/merged

The stages do this at the end of a run with --use_peft true; this is for a checkpoint in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from pipeline.config import check_types, require
from pipeline.folder_lock import lock_folder
from pipeline.model import load_adapters, merge_adapters, save_policy
from pipeline.runtime import one_line_errors
from stages.common import parse, print_summary


@dataclass
class MergeConfig:
    """Which adapters, and where the merged model goes."""

    adapter: str = HfArg(default="", help="folder with adapter_config.json, as checkpoint-N")
    output_dir: str = HfArg(default="", help="checkpoint folder to write")
    base: str | None = HfArg(
        default=None, help="model beneath the adapters; default: the one they were trained on"
    )

    def __post_init__(self):
        check_types(self)
        for name in ("adapter", "output_dir"):
            require(bool(getattr(self, name)), f"--{name} needs a folder")
        require(
            Path(self.adapter).absolute() != Path(self.output_dir).absolute(),
            f"output_dir={self.output_dir} is the folder of the adapters; give another",
        )


def run(config: MergeConfig) -> Path:
    """Merge, save one checkpoint folder, return it."""
    folder = Path(config.output_dir)
    with lock_folder(folder):
        model, tokenizer = load_adapters(config.adapter, config.base)
        save_policy(merge_adapters(model), tokenizer, folder)
    following = f"python -m eval.run --checkpoint {folder} --suite nano --output_dir {folder}/eval"
    print_summary("merged checkpoint", folder, {}, following)
    return folder


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    run(*parse((MergeConfig,), "", argv))


if __name__ == "__main__":
    main()
