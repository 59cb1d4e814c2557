"""What all Trainers here share: atomic checkpoints, exact resume, the value head's file.

The Trainer writes model, optimizer, scheduler, random numbers and its place in the data into
`.saving/checkpoint-N`; the rest of the state is added here:

    unlogged-R.json        metrics of process R since the last row of the log
    controllers.json       the state of `self.controllers`, such as an adaptive coefficient
    what `save_extra_state` of a subclass writes

Under FSDP2 every process writes and hashes its own part of weights and optimizer (`sharded_state`).
Then manifest.json is written with the SHA-256 of every file, everything is flushed to the disk, and
one rename makes it `checkpoint-N`. A kill at any moment leaves the older checkpoints intact.

With `pipeline.ppo.trl_trainer` this is the only file that uses private names of TRL, transformers
or accelerate. The tables below list them; they are checked when a trainer is built.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from pipeline.folder_lock import lock_folder
from pipeline.hosts import wait_for_files
from pipeline.model import (
    has_reasoning_layer,
    has_value_head,
    load_verifier,
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
    FileHashes,
    hash_files,
    replace_folder,
    write_manifest,
)
from pipeline.model.loading import is_quantized
from pipeline.model.shards import MODEL_SHARDS, is_sharded_checkpoint
from pipeline.model.unsharded import gathered, meta_copy, named_weights
from pipeline.runtime import out_of_memory
from pipeline.training.callbacks import OnTrainBegin
from pipeline.training.checkpointing import (
    RunFacts,
    clear_leftovers,
    delete_checkpoints,
    find_resume_checkpoint,
    one_line_write_errors,
)
from pipeline.training.controllers import (
    Controller,
    load_controllers,
    save_controllers,
    write_line,
)
from pipeline.training.fsdp import embeddings_in_root_unit, has_tied_adapted_embeddings
from pipeline.training.library_checks import cache_package_checks, check_private_names
from pipeline.training.optimizer import give_own_rate, muon_adamw
from pipeline.training.output_folder import check_hosts
from pipeline.training.progress import TrainingProgress
from pipeline.training.restored_weights import (
    LoadResult,
    load_own_head,
    load_own_reasoning_layer,
    require_all_loaded,
)
from pipeline.training.reward_errors import RewardError
from pipeline.training.run_settings import deciding
from pipeline.training.sharded_state import (
    load_optimizer,
    load_weights,
    own_files,
    save_description,
    save_optimizer,
    save_weights,
)
from pipeline.training.signals import SignalExit, SignalHandler

if TYPE_CHECKING:  # the mixins below are inherited before a TRL trainer
    from trl import GRPOTrainer as _Trainer
else:
    _Trainer = object

# Methods and class attributes of transformers' Trainer, or of the TRL trainer that is shelled.
PRIVATE_METHODS = {
    "_save_checkpoint": "overridden: the folder is written elsewhere and renamed when complete",
    "_get_output_dir": "overridden: the folder that a checkpoint is written into",
    "_push_from_checkpoint": "overridden: uploads the folder after it was renamed",
    "_save_optimizer_and_scheduler": "overridden: every process saves its part (FSDP2)",
    "_load_optimizer_and_scheduler": "overridden: loads sharded state and the controllers as well",
    "_maybe_log_save_evaluate": "overridden: after a step, saves and exits where a signal came",
    "_run_epoch": "overridden: takes no step where the resumed run is already at its end",
    "_save": "overridden: writes the value head into its own file",
    "_load_from_checkpoint": "overridden: loads the value head from its own file, and shards",
    "_load_best_model": "overridden: loads the value head from its own file, and shards (FSDP2)",
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
    "_total_loss_scalar": "set: sum of the losses for `train_loss`, without those before a resume",
}
SAVING = ".saving"

cache_package_checks()


class AtomicCheckpoints(_Trainer):
    """Saves checkpoints that are complete or absent; a mixin before a TRL trainer.

    `without_checkpoint` is the remedy that is printed where there is none to resume from.
    """

    without_checkpoint = "start without it"

    def __init__(self, *args: object, **kwargs: object):
        self._staging: Path | None = None
        self._saved_step = -1
        self._signals = SignalHandler()
        self._resumed_from: Path | None = None
        self._more_settings: dict[str, object] = {}
        super().__init__(*args, **kwargs)
        check_private_names(self, PRIVATE_ATTRIBUTES, __name__)
        self.add_callback(OnTrainBegin(self._restore))

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
        settings (`run_settings`). SIGTERM and Ctrl-C save a checkpoint and raise SignalExit; a
        reward function that fails (RewardError) saves one of the last step that has ended. No other
        run may write into the output folder meanwhile (FolderInUseError).
        """
        with lock_folder(self.args.output_dir):
            check_hosts(self.args)
            self._clear_leftovers()
            self._resumed_from = self.checked_checkpoint(resume_from_checkpoint)
            checkpoint = None if self._resumed_from is None else str(self._resumed_from)
            if checkpoint is not None and self.accelerator.is_main_process:
                print(f"going on from {checkpoint}", flush=True)
            with self._signals:
                try:
                    return super().train(resume_from_checkpoint=checkpoint, **kwargs)
                except RewardError as error:
                    # Where one process alone fails, saving would wait for the others for ever.
                    together = self.accelerator.num_processes == 1 or error.on_all_processes
                    if together and self.state.global_step:
                        self._save_current_step()
                    raise

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
                hashed = self._hashed_by_processes(made)
                self.accelerator.wait_for_everyone()
                wait_for_files(made)
                self._name_best(folder, made)
                if self.args.should_save:
                    write_manifest(made, hashed, **self._facts())
                    replace_folder(made, folder)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self._saved_step = self.state.global_step
        if self.args.should_save:
            best = Path(self.state.best_model_checkpoint or folder)
            delete_checkpoints(folder, best, limit=self.args.save_total_limit)
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
        write_line(folder / f"unlogged-{self.args.process_index}.json", unlogged)
        if self.args.should_save:
            save_controllers(folder, self.controllers)
            # A pickle with the Hub's token in clear text; run.json has the same arguments.
            (folder / "training_args.bin").unlink(missing_ok=True)

    def _hashed_by_processes(self, folder: Path) -> FileHashes:
        """Return the hashes of the shards in a folder, each by the process that wrote it."""
        if not is_sharded_checkpoint(folder):
            return {}
        own = hash_files(folder, own_files(folder, self.args.process_index))
        return {name: entry for part in gather_object([own]) for name, entry in part.items()}

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

    def _get_output_dir(self, trial: object) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push after the folder was renamed, not while it is being written."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _clear_leftovers(self) -> None:
        """Delete what a kill left of a checkpoint that was being written or replaced."""
        if self.args.should_save:
            clear_leftovers(Path(self.args.output_dir).absolute(), SAVING)
        self.accelerator.wait_for_everyone()

    # ---- resume ----

    def checked_checkpoint(self, asked: str | bool | None) -> Path | None:
        """Return the checkpoint to resume from, checked by the main process; None for a new run.

        Raises:
            DamagedCheckpointError: it is damaged, or of a run with other settings.
        """
        if not asked:
            return None
        found: list[object] = [None, None, []]
        if self.accelerator.is_main_process:
            output_dir, remedy = Path(self.args.output_dir), self.without_checkpoint
            found = [*find_resume_checkpoint(asked, output_dir, self._facts(), remedy)]
        folder, error, remarks = broadcast_object_list(found)
        if error is not None:
            raise DamagedCheckpointError(error)
        if self.accelerator.is_main_process:
            print("".join(f"{remark}\n" for remark in remarks), end="", flush=True)
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
        if checkpoint is not None:
            load_controllers(Path(checkpoint), self.controllers)

    def load_extra_state(self, folder: Path) -> None:
        """Read what `save_extra_state` wrote, after Trainer has initialized its counters."""
        path = folder / f"unlogged-{self.args.process_index}.json"
        if path.is_file():  # missing for a process that the saved run did not have
            unlogged = _read(path)
            self._metrics["train"].clear()
            self._metrics["train"].update(unlogged["metrics"])
            self._tr_loss.fill_(unlogged["loss"])
            self._globalstep_last_logged = unlogged["logged_at"]
            # `train_loss` is the mean of the steps that this call of `train` takes.
            self._total_loss_scalar = -unlogged["loss"]

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
        if signum:
            self._save_current_step()
            raise SignalExit(signum)

    def _save_current_step(self) -> None:
        """Save a checkpoint of the last step that has ended, where there is none; all processes
        call it."""
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, trial=None)
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            print(f"saved {folder}; the same command continues from it", flush=True)

    def _restore(self) -> None:
        check_private_names(self, PRIVATE_TRAINING_STATE, __name__)
        if self._resumed_from is not None:
            self.load_extra_state(self._resumed_from)


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
        self._load_own_parts(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the best checkpoint as Trainer does, with the parts that have their own files."""
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if best is None or self.is_deepspeed_enabled:  # DeepSpeed has loaded all weights
            return
        self._load_own_parts(best)
        verifier = verifier_of(self.accelerator.unwrap_model(self.model))
        if verifier is not None and (stored := load_verifier(best)) is not None:
            verifier.load_state_dict(stored.state_dict())

    def _load_own_parts(self, folder: str) -> None:
        """Load value head and reasoning layer, which Trainer does not know, from a checkpoint."""
        if is_sharded_checkpoint(folder):
            return  # the shards hold them as well
        policy = self.accelerator.unwrap_model(self.model)
        if has_reasoning_layer(policy):
            load_own_reasoning_layer(policy, folder)
        if has_value_head(policy):
            load_own_head(policy, folder)

    def _issue_warnings_after_load(self, load_result: LoadResult) -> None:
        """Raise ValueError where weights are missing or unexpected (`require_all_loaded`)."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or ()
        require_all_loaded(load_result, set(tied))


class ShardedCheckpoints(_Trainer):
    """Saves and loads the parts that processes hold of a sharded model (FSDP2); a mixin before a
    Trainer. A sharded checkpoint also resumes on another number of processes, and without FSDP2."""

    _staging: Path | None  # the folder of a checkpoint that is being written

    @property
    def is_sharded(self) -> bool:
        """Whether the training divides weights and optimizer among processes (FSDP2)."""
        return self.is_fsdp_enabled and self.accelerator.is_fsdp2

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as Trainer does; of a sharded model a checkpoint gets shards, nothing is gathered,
        and any other folder the whole model."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
        elif self._staging is None:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        else:
            folder = Path(str(output_dir))
            save_weights(self.model, folder, self.args.world_size)
            if self.args.should_save:
                save_description(self.model, self.skeleton, self.processing_class, folder)
                if (verifier := verifier_of(self.model)) is not None:
                    save_verifier(verifier, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        args = self.args
        save_optimizer(
            self.model,
            self.optimizer,
            Path(output_dir),
            process=args.process_index,
            processes=args.world_size,
        )
        if args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if is_sharded_checkpoint(resume_from_checkpoint):
            load_weights(
                self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint)
            )
            return
        if self.is_sharded:
            raise ValueError(
                f"{resume_from_checkpoint} was saved without FSDP2, so it has no {MODEL_SHARDS}; "
                "resume without FSDP2, or start another run from its weights: --model "
                f"{resume_from_checkpoint} and a new --output_dir"
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded_checkpoint(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        load_optimizer(self.accelerator.unwrap_model(self.model), self.optimizer, folder)
        state = torch.load(folder / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(state)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None and is_sharded_checkpoint(best):
            load_weights(self.accelerator.unwrap_model(self.model), Path(best))
        else:
            super()._load_best_model()


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


class TrainerShell(AtomicCheckpoints, ValueHeadFiles, ShardedCheckpoints):
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

    def weights_cast_once(self) -> AbstractContextManager[None]:
        """Return a context in which autocast keeps its copies of the weights: they are dropped at
        the end of the outermost context, so that without this one each micro-batch casts all
        weights again. It casts nothing itself. Divided weights have no copies to keep."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, enabled=False)

    def reduced_at_the_end(
        self, model: nn.Module, *, is_last: bool
    ) -> AbstractContextManager[object]:
        """Return a context for a micro-batch: processes reduce their gradients in the last one of
        an optimizer step alone."""
        self.accelerator.sync_gradients = is_last
        if is_last or self.is_deepspeed_enabled:
            return nullcontext()
        return self.accelerator.no_sync(model)

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Metrics of training or of evaluation since the last row of the log, by name; each is a
        list that can be appended to, and the row has the means."""
        return self._metrics["train" if self.model.training else "eval"]

    def _prepare_for_training(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        """Prepare as Trainer does; under FSDP2 with a workaround for tied embeddings."""
        if self.is_fsdp_enabled:
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


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
