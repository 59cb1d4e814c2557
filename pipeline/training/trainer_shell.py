"""What all Trainers here share: atomic checkpoints, exact resume, the value head's file.

The Trainer writes model, optimizer, scheduler, random numbers and its place in the data into
`.saving/checkpoint-N`; the rest of the state is added here:

    unlogged-R.json        metrics of process R since the last row of the log
    controllers.json       the state of `self.controllers`, such as an adaptive coefficient
    what `save_extra_state` of a subclass writes

Then manifest.json is written with the SHA-256 of every file, everything is flushed to the disk, and
one rename makes it `checkpoint-N`. A kill at any moment leaves the older checkpoints intact.

With `pipeline.ppo.trl_trainer` this is the only file that uses private names of TRL, transformers
or accelerate. The tables below list them; they are checked when a trainer is built.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, modeling, other
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from pipeline.folder_lock import lock_folder
from pipeline.model import (
    REASONING_FILE,
    has_reasoning_layer,
    has_value_head,
    load_reasoning_weights,
    load_value_head,
    reject_reasoning_layer,
    save_reasoning_layer,
    save_value_head,
    save_verifier,
    split_reasoning_layer,
    split_value_head,
    verifier_of,
)
from pipeline.model.atomic import (
    DamagedCheckpointError,
    checkpoints,
    replace_folder,
    restore,
    write_manifest,
)
from pipeline.model.loading import is_quantized
from pipeline.model.unsharded import gathered, meta_copy, named_weights
from pipeline.runtime import out_of_memory
from pipeline.training.checkpointing import (
    Controller,
    RunFacts,
    checkpoint_step,
    find_resume_checkpoint,
    one_line_write_errors,
)
from pipeline.training.fsdp import (
    check_adapters_can_be_saved,
    embeddings_in_root_unit,
    has_tied_adapted_embeddings,
)
from pipeline.training.optimizer import give_own_rate, muon_adamw
from pipeline.training.progress import TrainingProgress
from pipeline.training.run_settings import deciding
from pipeline.training.signals import SignalExit, SignalHandler

if TYPE_CHECKING:  # the mixins below are inherited before a TRL trainer
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object

SUPPORTED_TRL = ">=1.12,<1.18"

# Methods and class attributes of transformers' Trainer, or of the TRL trainer that is shelled.
PRIVATE_METHODS = {
    "_save_checkpoint": "overridden: the folder is written elsewhere and renamed when complete",
    "_get_output_dir": "overridden: the folder that a checkpoint is written into",
    "_push_from_checkpoint": "overridden: uploads the folder after it was renamed",
    "_load_optimizer_and_scheduler": "overridden: loads the controllers as well",
    "_maybe_log_save_evaluate": "overridden: after a step, saves and exits where a signal came",
    "_run_epoch": "overridden: takes no step where the resumed run is already at its end",
    "_save": "overridden: writes the value head into its own file",
    "_load_from_checkpoint": "overridden: loads the value head from its own file",
    "_issue_warnings_after_load": "overridden: the value head is not a missing weight",
    "_prepare_for_training": "overridden: tied embeddings with adapters are sharded once (FSDP2)",
    "_get_train_sampler": "overridden: calls train_sampler()",
    "_get_num_items_in_batch": "overridden: calls count_items()",
    "_tag_names": "set: tags of the model card, from `tags`",
}
# Attributes of an instance, there after __init__.
PRIVATE_ATTRIBUTES = {
    "_metrics": "read and set: metrics since the last row of the log, saved for an exact resume",
}
# Attributes of an instance, there when training begins.
PRIVATE_TRAINING_STATE = {
    "_tr_loss": "read and set: loss since the last row of the log, saved for an exact resume",
    "_globalstep_last_logged": "read and set: step of the last row of the log, likewise",
}
SAVING = ".saving"
CONTROLLERS = "controllers.json"
# Names of controllers in checkpoints of earlier versions.
FORMER_CONTROLLERS = {"guard": "nonfinite", "critic": "verifier"}


def check_private_names(owner: object, names: Iterable[str], used_by: str) -> None:
    """Raise ImportError unless `owner`, a class or an instance, has every one of the names."""
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        cls = owner if isinstance(owner, type) else type(owner)
        raise ImportError(
            f"{cls.__name__}.{missing[0]}, which {used_by} uses, does not exist in trl "
            f"{version('trl')} with transformers {version('transformers')}; install "
            f"trl{SUPPORTED_TRL}"
        )


def cache_package_checks() -> None:
    """Make accelerate look only once whether peft and deepspeed are installed.

    Otherwise it reads the metadata files of both packages several times in every training step.
    """
    for module, name in ((modeling, "is_peft_available"), (other, "is_deepspeed_available")):
        check = getattr(module, name)
        if not hasattr(check, "cache_info"):
            setattr(module, name, cache(check))


cache_package_checks()


class AtomicCheckpoints(_Trainer):
    """Saves checkpoints that are complete or absent; a mixin before a TRL trainer."""

    def __init__(self, *args: object, **kwargs: object):
        self._staging: Path | None = None
        self._saved_step = -1
        self._signals = SignalHandler()
        self._resumed_from: Path | None = None
        self._more_settings: dict[str, object] = {}
        super().__init__(*args, **kwargs)
        check_private_names(self, PRIVATE_ATTRIBUTES, __name__)
        self.add_callback(_OnTrainBegin(self._restore))

    @property
    def controllers(self) -> dict[str, Controller]:
        """Objects whose state is saved with every checkpoint, by name; override to add any."""
        return {}

    def also_decided_by(self, settings: Mapping[str, object]) -> None:
        """What else decides how this run goes on, by name, as plain JSON: it is saved with every
        checkpoint, and a run that has other values does not resume from it."""
        self._more_settings |= settings

    @cached_property
    def _settings(self) -> dict[str, object]:
        return deciding(self.args, self.args.world_size, self.train_dataset, self._more_settings)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: object
    ) -> TrainOutput:
        """Train as Trainer does; True or "last" resumes from the newest intact checkpoint.

        A damaged checkpoint is never read (DamagedCheckpointError), nor one of a run with other
        settings (`run_settings`). SIGTERM and Ctrl-C save a checkpoint and raise SignalExit. No
        other run may write into the output folder meanwhile (FolderInUseError).
        """
        with lock_folder(self.args.output_dir):
            self._clear_leftovers()
            self._resumed_from = self._checked(resume_from_checkpoint)
            checkpoint = None if self._resumed_from is None else str(self._resumed_from)
            with self._signals:
                return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    # ---- save ----

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Save as Trainer does, into a temporary folder that is renamed when it is complete."""
        folder = Path(super()._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self._staging = folder.parent / SAVING
        made = self._staging / folder.name
        try:
            with one_line_write_errors(folder):
                super()._save_checkpoint(model, trial)
                self.save_extra_state(made)
                self.accelerator.wait_for_everyone()
                self._name_best(folder, made)
                if self.args.should_save:
                    write_manifest(made, **self._facts())
                    replace_folder(made, folder)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self._saved_step = self.state.global_step
        if self.args.should_save:
            self._rotate(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def save_extra_state(self, folder: Path) -> None:
        """Write state that Trainer does not save into a checkpoint; called on every process."""
        folder.mkdir(parents=True, exist_ok=True)
        unlogged = {
            "metrics": dict(self._metrics["train"]),
            "loss": self._tr_loss.item(),
            "logged_at": self._globalstep_last_logged,
        }
        _write(folder / f"unlogged-{self.args.process_index}.json", unlogged)
        if self.args.should_save:
            states = {name: part.state_dict() for name, part in self.controllers.items()}
            _write(folder / CONTROLLERS, states)
            # A pickle with the Hub's token in clear text; run.json has the same arguments.
            (folder / "training_args.bin").unlink(missing_ok=True)

    def _facts(self) -> RunFacts:
        return {
            "step": self.state.global_step,
            "processes": self.args.world_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "save_only_model": self.args.save_only_model,
            "settings": self._settings,
        }

    def _name_best(self, folder: Path, made: Path) -> None:
        """Correct the name of the best checkpoint, which Trainer sets to the temporary folder."""
        if self.state.best_global_step:
            best = folder.parent / f"checkpoint-{self.state.best_global_step}"
            exists = best == folder or best.is_dir()
            self.state.best_model_checkpoint = str(best) if exists else None
            if self.args.should_save:
                self.state.save_to_json(str(made / "trainer_state.json"))

    def _rotate(self, newest: Path) -> None:
        """Delete checkpoints beyond save_total_limit: never the newest nor the best, first those
        with a later step, from a run that was resumed before them."""
        limit = self.args.save_total_limit
        kept = {newest, Path(self.state.best_model_checkpoint or newest)}
        others = [path for path in checkpoints(newest.parent) if path not in kept]
        step = self.state.global_step
        others.sort(key=lambda path: (checkpoint_step(path) < step, checkpoint_step(path)))
        if limit and limit > 0:
            for path in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
                shutil.rmtree(path, ignore_errors=True)

    def _get_output_dir(self, trial: object) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push after the folder was renamed, not while it is being written."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _clear_leftovers(self) -> None:
        """Delete what a kill left of a checkpoint that was being written or replaced."""
        if self.args.should_save:
            output_dir = Path(self.args.output_dir).absolute()
            restore(output_dir)
            for path in [output_dir / SAVING, *output_dir.glob(".checkpoint-*.old")]:
                shutil.rmtree(path, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    # ---- resume ----

    def _checked(self, asked: str | bool | None) -> Path | None:
        """Return the checkpoint to resume from, checked by the main process; None for a new run."""
        if not asked:
            return None
        found: list[object] = [None, None, []]
        if self.accelerator.is_main_process:
            found = [*find_resume_checkpoint(asked, Path(self.args.output_dir), self._facts())]
        folder, error, remarks = broadcast_object_list(found)
        if error is not None:
            raise DamagedCheckpointError(error)
        if self.accelerator.is_main_process:
            print("\n".join([*remarks, f"going on from {folder}"]), flush=True)
        return Path(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{checkpoint} holds the state of another optimizer than this run has "
                f"({type(error).__name__}: {' '.join(str(error).split())}); resume with the "
                "optimizer it was saved with"
            ) from error
        if checkpoint is None:
            return
        saved = _read(Path(checkpoint) / CONTROLLERS)
        states = {FORMER_CONTROLLERS.get(name, name): state for name, state in saved.items()}
        if states.keys() != self.controllers.keys():
            raise ValueError(
                f"{checkpoint} was saved with the controllers {sorted(states)}, and this run "
                f"has {sorted(self.controllers)}; resume with the configuration it was saved with"
            )
        for name, part in self.controllers.items():
            part.load_state_dict(states[name])

    def load_extra_state(self, folder: Path) -> None:
        """Read what `save_extra_state` wrote, after Trainer has initialized its counters."""
        path = folder / f"unlogged-{self.args.process_index}.json"
        if path.is_file():  # missing for a process that the saved run did not have
            unlogged = _read(path)
            self._metrics["train"].clear()
            self._metrics["train"].update(unlogged["metrics"])
            self._tr_loss.fill_(unlogged["loss"])
            self._globalstep_last_logged = unlogged["logged_at"]

    def _run_epoch(self, *args: object, **kwargs: object) -> None:
        """Take no step of a run that was saved at its end; Trainer would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- signals ----

    def _maybe_log_save_evaluate(self, *args: object, **kwargs: object) -> None:
        """Log, save and evaluate as Trainer does; then save and exit where a signal came."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        signum = self._signals.signum
        if self.accelerator.num_processes > 1:
            asked = torch.tensor([signum], device=self.accelerator.device)
            signum = int(self.accelerator.gather(asked).max())
        if not signum:
            return
        if self.is_fsdp_enabled and hasattr(self.model, "peft_config"):
            raise SignalExit(signum)  # adapters of a sharded model cannot be saved
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, trial=None)
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            print(f"saved {folder}; the same command continues from it", flush=True)
        raise SignalExit(signum)

    def _restore(self) -> None:
        check_private_names(self, PRIVATE_TRAINING_STATE, __name__)
        if self._resumed_from is not None:
            self.load_extra_state(self._resumed_from)


class _OnTrainBegin(TrainerCallback):
    """Calls `action` when Trainer has loaded its own state and initialized its counters."""

    def __init__(self, action: Callable[[], None]):
        self.action = action

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Call the action."""
        self.action()


class _LoadResult(Protocol):
    """What load_state_dict returns."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class ValueHeadFiles(_Trainer):
    """Saves and loads value head and reasoning layer beside the model; a mixin before a Trainer."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the model without value head and reasoning layer, which get their own files."""
        model = self.accelerator.unwrap_model(self.model)
        plain, head = split_value_head(state_dict or model.state_dict())
        plain, reasoning = split_reasoning_layer(plain)
        super()._save(output_dir, plain)
        if self.args.should_save and has_reasoning_layer(model):
            folder = output_dir or self.args.output_dir
            save_reasoning_layer(model.reasoning_layer, folder, reasoning)
        if self.args.should_save and has_value_head(model):
            # Under PEFT only the adapters are among the weights.
            head = head or model.value_head.state_dict()
            save_value_head(model.value_head, output_dir or self.args.output_dir, head)
            verifier = verifier_of(model)
            if verifier is not None:
                save_verifier(verifier, output_dir or self.args.output_dir)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise ValueError(
                f"{resume_from_checkpoint} holds weights of another model than this run has "
                f"({' '.join(str(error).split())[:200]}); resume with the model it was saved with"
            ) from error
        if self.is_fsdp_enabled:
            return  # FSDP's own files hold the value head as well
        policy = self.accelerator.unwrap_model(self.model)
        if has_reasoning_layer(policy):
            path = Path(resume_from_checkpoint) / REASONING_FILE
            if not path.exists():
                raise ValueError(
                    f"{resume_from_checkpoint} has no {REASONING_FILE}, and the model of this run "
                    "has a reasoning layer; resume from a checkpoint of the same run"
                )
            load_reasoning_weights(policy.reasoning_layer, path)
        if not has_value_head(policy):
            return
        head = load_value_head(resume_from_checkpoint)
        if head is None:
            raise ValueError(
                f"{resume_from_checkpoint} has no value head, and the model of this run has one; "
                "resume from a checkpoint of the same run"
            )
        own = policy.value_head
        if (head.hidden_size, head.hidden) != (own.hidden_size, own.hidden):
            raise ValueError(
                f"{resume_from_checkpoint} has a value head of width {head.hidden_size} and hidden="
                f"{head.hidden}, and this run one of {own.hidden_size} and {own.hidden}; resume "
                "from a checkpoint of the same run"
            )
        own.load_state_dict(head.state_dict())

    def _issue_warnings_after_load(self, load_result: _LoadResult) -> None:
        """Raise ValueError for missing or unexpected weights: they would keep the values that
        the run began with. Not for value head, reasoning layer (their own files) and tied weights.
        """
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [
            key
            for key in load_result.missing_keys
            if key not in tied and not key.startswith(("value_head.", "reasoning_layer."))
        ]
        wrong = [*load_result.missing_keys, *load_result.unexpected_keys]
        if wrong:
            raise ValueError(
                f"the checkpoint and the model of this run differ in {len(wrong):,} weights, the "
                f"first {wrong[0]}; resume with the model it was saved with"
            )


class PlainTrainer(Trainer):
    """transformers' Trainer with what the shell uses of a TRL trainer: metrics that are logged as
    means with the next row."""

    _tag_names: list[str] = []  # noqa: RUF012

    def __init__(self, *args: object, **kwargs: object):
        self._metrics: dict[str, dict[str, list[float]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }
        super().__init__(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row with the means of the metrics since the last one."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = {name: sum(values) / len(values) for name, values in metrics.items()}
        metrics.clear()
        super().log({**logs, **means}, start_time)


class TrainerShell(AtomicCheckpoints, ValueHeadFiles):
    """What the trainers share, to be inherited before a TRL trainer or PlainTrainer.

    The arguments are those of that trainer with MuonOptions. A subclass overrides the public hooks
    `train_sampler` and `count_items` instead of private methods.
    """

    optimizer: torch.optim.Optimizer | None
    tags: tuple[str, ...] = ("trl", "thinkhead")  # of the model card
    value_learning_rate: float | None = None  # of the value head; None: that of the rest

    def __init__(self, *args: object, **kwargs: object):
        check_private_names(Trainer, PRIVATE_METHODS.keys() - {"_tag_names"}, __name__)
        check_private_names(type(self), ("_tag_names",), __name__)
        self._tag_names = list(self.tags)
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            reject_reasoning_layer(self.model, "DeepSpeed or FSDP")
        if is_quantized(self.model):  # TRL casts what is trained to bfloat16, the value head too
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        # Theirs print every row of the log as a dict, and count optimizer steps without sampling.
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)
        self.add_callback(self.make_progress())

    def make_progress(self) -> TrainingProgress:
        """Return the callback that shows the progress of the training."""
        return TrainingProgress("SFT")

    def train_sampler(self, dataset: Dataset | None = None) -> Sampler | None:
        """Return the sampler of training rows; default: TRL's."""
        return super()._get_train_sampler(dataset)

    def count_items(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """Return what compute_loss gets as num_items_in_batch, of the micro-batches of one step;
        default: the number of labels."""
        return super()._get_num_items_in_batch(batch_samples, device)

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Write nothing: TRL's card would name neither the data nor the base model of a run.
        `stages.publish` makes the card."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return Muon with AdamW if args.muon is set, otherwise the optimizer of args.optim."""
        is_new = self.optimizer is None
        if self.args.muon and is_new:
            self.optimizer = muon_adamw(
                self.model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                **self.args.muon_options(),
                head_learning_rate=self.value_learning_rate,
            )
        optimizer = super().create_optimizer(model)
        if self.value_learning_rate and is_new and not self.args.muon:
            give_own_rate(optimizer, self.model.value_head, self.value_learning_rate)
        return optimizer

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Metrics of training or of evaluation since the last row of the log, by name; each is a
        list that can be appended to, and the row has the means."""
        return self._metrics["train" if self.model.training else "eval"]

    def _prepare_for_training(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        """Prepare as Trainer does; under FSDP2 with a workaround for tied embeddings."""
        if self.is_fsdp_enabled:
            check_adapters_can_be_saved(self.model, str(self.args.save_strategy.value))
            assert self.skeleton is not None  # made now, because a sharded model cannot be copied
        if not self.is_fsdp_enabled or not has_tied_adapted_embeddings(self.model):
            return super()._prepare_for_training(*args, **kwargs)
        self.create_optimizer()  # it needs the LM head that the context hides
        with embeddings_in_root_unit(self.model):
            return super()._prepare_for_training(*args, **kwargs)

    @cached_property
    def skeleton(self) -> nn.Module:
        """A copy of the model on the meta device, to be filled with gathered weights."""
        return meta_copy(self.accelerator.unwrap_model(self.model))

    @contextmanager
    def gathered_model(self) -> Iterator[nn.Module]:
        """Context with a sharded model as a whole on the CPU of the main process (FSDP2).

        All processes must enter it together. On other processes its weights are empty.
        """
        main = self.accelerator.is_main_process
        weights = named_weights(self.model)
        with gathered(
            weights, self.skeleton, place=lambda full: full.cpu() if main else full.new_empty(0)
        ) as model:
            yield model

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self.train_sampler(train_dataset)

    def _get_num_items_in_batch(
        self, batch_samples: list, device: torch.device
    ) -> torch.Tensor | int | None:
        return self.count_items(batch_samples, device)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content) + os.linesep, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
