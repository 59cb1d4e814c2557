"""Checkpoints that are whole or not there, and a run that goes on from one as if unbroken.

AtomicCheckpoints stands before a Hugging Face Trainer. The Trainer writes model, optimizer, scheduler,
random numbers and its place in the data into `.saving/checkpoint-N`; what it forgets joins them:

    unlogged-R.json        what process R has measured since the last line of the log
    controllers.json       the state of `self.controllers`, such as an adaptive coefficient
    rollout-R.safetensors  a rollout of PPO that is not used up yet (ppo_head)

Then manifest.json is written with the SHA-256 of every file, everything is flushed to the disk, and
one rename makes it `checkpoint-N`. A kill at any moment leaves the checkpoints that were there.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback

from pipeline.folder_lock import lock_folder
from pipeline.model import (
    has_value_head,
    load_value_head,
    save_value_head,
    save_verifier,
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
from pipeline.runtime import out_of_memory
from pipeline.training.checkpointing import find_resume_checkpoint
from pipeline.training.run_settings import deciding
from pipeline.training.signals import SignalExit, SignalHandler

SAVING = ".saving"
# What is replaced of transformers' Trainer; without one of them a promise would quietly not hold.
HOOKS = (
    "_save_checkpoint",
    "_get_output_dir",
    "_push_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_maybe_log_save_evaluate",
)
CONTROLLERS = "controllers.json"


class AtomicCheckpoints:
    """To be inherited from before a Trainer."""

    def __init__(self, *args: Any, **kwargs: Any):
        missing = [hook for hook in HOOKS if not hasattr(Trainer, hook)]
        if missing:
            raise ImportError(
                f"this transformers has no Trainer.{missing[0]}, on which saving rests; "
                "install the version in constraints.txt"
            )
        self._staging: Path | None = None
        self._saved_step = -1
        self._signals = SignalHandler()
        self._resumed_from: Path | None = None
        self._more_settings: dict[str, Any] = {}
        super().__init__(*args, **kwargs)
        self.add_callback(_Restore(self))

    @property
    def controllers(self) -> dict[str, Any]:
        """What has a state of its own, by name, for a trainer that has any to override.

        Objects with load_state_dict() and state_dict(), which must be plain JSON.
        """
        return {}

    def also_decided_by(self, settings: dict[str, Any]) -> None:
        """What else decides how this run goes on, by name, as plain JSON: it is saved with every
        checkpoint, and a run that has other values does not resume from it."""
        self._more_settings |= settings

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return deciding(self.args, self.args.world_size, self.train_dataset, self._more_settings)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in Trainer; True or "last" is the newest checkpoint that is whole.

        A damaged one is never read, nor one of a run with other settings (run_settings). SIGTERM
        and Ctrl-C save and leave. No other run may write into the output folder meanwhile
        (FolderInUseError).
        """
        with lock_folder(self.args.output_dir):
            self._clear_leftovers()
            self._resumed_from = self._checked(resume_from_checkpoint)
            checkpoint = None if self._resumed_from is None else str(self._resumed_from)
            with self._signals:
                return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    # ---- save ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's, into a folder that nobody reads yet, which is renamed once it is complete."""
        folder = Path(super()._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self._staging = folder.parent / SAVING
        made = self._staging / folder.name
        try:
            with _clear_errors(folder):
                super()._save_checkpoint(model, trial)
                self._save_more(made)
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

    def _save_more(self, folder: Path) -> None:
        """What Trainer forgets. Every process calls it."""
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
            # A pickle, which holds the Hub's token in clear text; run.json says the same.
            (folder / "training_args.bin").unlink(missing_ok=True)

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.state.global_step,
            "processes": self.args.world_size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "save_only_model": self.args.save_only_model,
            "settings": self._settings,
        }

    def _name_best(self, folder: Path, made: Path) -> None:
        """Trainer has looked for the best checkpoint in the folder that is being written."""
        if self.state.best_global_step:
            best = folder.parent / f"checkpoint-{self.state.best_global_step}"
            exists = best == folder or best.is_dir()
            self.state.best_model_checkpoint = str(best) if exists else None
            if self.args.should_save:
                self.state.save_to_json(str(made / "trainer_state.json"))

    def _rotate(self, newest: Path) -> None:
        """Drop what save_total_limit does not keep: never the newest nor the best, first those of a
        future that was given up."""
        limit = self.args.save_total_limit
        kept = {newest, Path(self.state.best_model_checkpoint or newest)}
        others = [path for path in checkpoints(newest.parent) if path not in kept]
        step = self.state.global_step
        others.sort(key=lambda path: (_step(path) < step, _step(path)))
        if limit and limit > 0:
            for path in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
                shutil.rmtree(path, ignore_errors=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Once the folder has its name, not while it is being written."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _clear_leftovers(self) -> None:
        """What a kill has left of a checkpoint that was being written or replaced."""
        if self.args.should_save:
            output_dir = Path(self.args.output_dir).absolute()
            restore(output_dir)
            for path in [output_dir / SAVING, *output_dir.glob(".checkpoint-*.old")]:
                shutil.rmtree(path, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    # ---- resume ----

    def _checked(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to resume from, found whole by the main process; None for a new run."""
        if not asked:
            return None
        found: list[Any] = [None, None, []]
        if self.accelerator.is_main_process:
            found = find_resume_checkpoint(asked, Path(self.args.output_dir), self._facts())
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
        states = _read(Path(checkpoint) / CONTROLLERS)
        if states.keys() != self.controllers.keys():
            raise ValueError(
                f"{checkpoint} was saved with the controllers {sorted(states)}, and this run "
                f"has {sorted(self.controllers)}; resume with the configuration it was saved with"
            )
        for name, part in self.controllers.items():
            part.load_state_dict(states[name])

    def _load_more(self, folder: Path) -> None:
        """What `_save_more` wrote, after Trainer has set its counters for a fresh start."""
        path = folder / f"unlogged-{self.args.process_index}.json"
        if path.is_file():  # not for a process that the saved run did not have
            unlogged = _read(path)
            self._metrics["train"].clear()
            self._metrics["train"].update(unlogged["metrics"])
            self._tr_loss.fill_(unlogged["loss"])
            self._globalstep_last_logged = unlogged["logged_at"]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer would take one step more of a run that was at its end when it was saved."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- leave ----

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's; then save and leave, where a signal has asked any process to."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        signum = self._signals.signum
        if self.accelerator.num_processes > 1:
            asked = torch.tensor([signum], device=self.accelerator.device)
            signum = int(self.accelerator.gather(asked).max())
        if not signum:
            return
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, trial=None)
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            print(f"saved {folder}; go on with --resume_from_checkpoint last", flush=True)
        raise SignalExit(signum)


class _Restore(TrainerCallback):
    """Calls back once Trainer has set its counters, which is after it has loaded its own state."""

    def __init__(self, trainer: AtomicCheckpoints):
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer._resumed_from is not None:
            self.trainer._load_more(self.trainer._resumed_from)


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """What goes wrong while writing a checkpoint, in one line that says what is left.

    A full disk is an OSError in Python, a RuntimeError in torch.save and a SafetensorError.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        older = [path for path in checkpoints(folder.parent) if path != folder]
        left = f"{older[0].name} is as it was" if older else "there is no older one"
        reason = " ".join(str(error).split())
        raise OSError(
            f"{folder} could not be saved: {reason} ({_free(folder)} bytes are free there); "
            f"{left}; free space, then go on with --resume_from_checkpoint last"
        ) from error


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder.parent).free:,}"
    except OSError:
        return "unknown"


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + os.linesep, encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class ValueHeadFiles:
    """To be inherited from before a Trainer, whose model may have a value head."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The folder stays a plain model folder; the value head goes beside it."""
        model = self.accelerator.unwrap_model(self.model)
        plain, head = split_value_head(state_dict or model.state_dict())
        super()._save(output_dir, plain)
        if self.args.should_save and has_value_head(model):
            # Under PEFT only the adapters are among the weights.
            head = head or model.value_head.state_dict()
            save_value_head(model.value_head, output_dir or self.args.output_dir, head)
            if verifier_of(model) is not None:
                save_verifier(verifier_of(model), output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
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
            return  # its own files hold the value head as well
        policy = self.accelerator.unwrap_model(self.model)
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

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Only the value head, which has its own file, and tied weights may be missing: everything
        else would be left as the run began with it."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [
            key
            for key in load_result.missing_keys
            if key not in tied and not key.startswith("value_head.")
        ]
        wrong = [*load_result.missing_keys, *load_result.unexpected_keys]
        if wrong:
            raise ValueError(
                f"the checkpoint and the model of this run differ in {len(wrong):,} weights, the "
                f"first {wrong[0]}; resume with the model it was saved with"
            )
