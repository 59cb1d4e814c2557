"""Upload checkpoints to the Hub in a background thread during training.

Every saved checkpoint is hard-linked to a temporary folder, so the trainer may delete its own, and
uploaded by one thread; the weights of a sharded one (FSDP2) are gathered there. If uploads are
slower than saves, only the newest waiting one is uploaded. A failed upload prints one line and
training continues. At the end the final checkpoint is uploaded; if that fails, the command to
publish it later is printed. Uses the fields of transformers:
push_to_hub, hub_model_id, hub_strategy, hub_private_repo, hub_revision, hub_always_push, hub_token.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.config import require
from pipeline.hub.publish import publish, publish_command, reason
from pipeline.hub.upload import link_files, plan_upload
from pipeline.model.plain_copy import write_plain
from pipeline.model.shards import is_sharded_checkpoint

UPLOAD_TIMEOUT = 900.0  # seconds that a finished training waits for uploads
# (checkpoint folder, repository, state of the training) -> README.md
Card = Callable[[Path, str, str], str]


@dataclass(frozen=True)
class Target:
    """Repository, branch and token of the uploads; the token is not in the repr."""

    repo_id: str
    private: bool = False
    revision: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Target({self.repo_id})"


def hub_push(args: TrainingArguments, card: Card) -> "HubPush | None":
    """The callback that uploads the checkpoints of a training; None without `push_to_hub`.

    It replaces the push of the Trainer, which raises if the Hub is unreachable, and uploads
    training_args.bin with the token in it. Afterwards `args` has push_to_hub=False and no token.
    """
    token, args.hub_token = args.hub_token, None
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    require(
        strategy in ("every_save", "end"),
        f"hub_strategy={strategy} would upload the optimizer's state, which is a pickle; "
        "give every_save or end",
    )
    target = Target(
        args.hub_model_id or Path(args.output_dir or ".").absolute().name,
        bool(args.hub_private_repo),
        args.hub_revision,
        token,
    )
    return HubPush(target, card, every_save=strategy == "every_save", keep=args.hub_always_push)


class HubPush(TrainerCallback):
    """Uploads checkpoints in one background thread; no method raises if an upload fails."""

    def __init__(
        self, target: Target, card: Card, *, every_save: bool = True, keep: bool = False
    ) -> None:
        self.target = target
        self.card = card
        self.every_save = every_save
        self.keep = keep  # upload every save, also if uploads are slower
        self.done: list[tuple[Path, str]] = []  # (checkpoint, URL of its commit)
        self.is_main = True  # of several processes; set when training begins
        self.failed: list[str] = []  # one-line reasons
        self._waiting: list[tuple[Path, Path, str]] = []  # (linked copy, original, state)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    # ---- while training ----

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Delete what a killed run left beside the output folder."""
        self.is_main = state.is_world_process_zero
        if self.is_main:
            disable_progress_bars()  # they would overwrite that of the trainer
            out = Path(args.output_dir).absolute()
            for left in out.parent.glob(f".{out.name}.push-*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Queue the checkpoint that was saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.every_save and state.is_world_process_zero and folder.is_dir():
            self.add(folder, f"after {state.global_step:,} of {state.max_steps:,} steps")

    def add(self, folder: Path, state: str = "") -> None:
        """Queue a checkpoint for upload and return at once."""
        out = folder.absolute().parent if state else folder.absolute()
        try:
            aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.push-", dir=out.parent))
            if is_sharded_checkpoint(folder):
                write_plain(folder, aside)
            else:
                link_files(folder, aside)
        except (OSError, ValueError) as error:
            return self._fail(folder, str(error))
        with self._lock:
            if not self.keep:
                for dropped, _, _ in self._waiting:
                    shutil.rmtree(dropped, ignore_errors=True)
                self._waiting.clear()
            self._waiting.append((aside, folder, state))
            if self._thread is None or not self._thread.is_alive():
                # A daemon thread: a request without an answer must not keep the program running.
                self._thread = threading.Thread(target=self._work, name="hub-push", daemon=True)
                self._thread.start()

    # ---- at the end ----

    def finish(self, folder: Path) -> bool:
        """Upload the final checkpoint and print the result; True if it is on the Hub.

        Waits at most UPLOAD_TIMEOUT seconds for all uploads.
        """
        self.add(folder)
        thread = self._thread
        try:
            if thread is not None:
                thread.join(UPLOAD_TIMEOUT)
        finally:  # also after Ctrl-C
            address = next((url for pushed, url in self.done if pushed == folder), None)
            if address is not None:
                print(f"pushed: {address}", flush=True)
            else:
                if thread and thread.is_alive():
                    print(
                        f"the upload did not end within {UPLOAD_TIMEOUT:.0f} s: not waiting longer"
                    )
                print(f"push later: {self.publish_command(folder)}", flush=True)
        return address is not None

    # ---- in the thread ----

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                aside, folder, state = self._waiting.pop(0)
            try:
                self.done.append((folder, self._push(aside, state)))
            # Any error: a failed upload must not end the training.
            except Exception as error:
                said = str(error) if isinstance(error, (OSError, ValueError)) else reason(error)
                self._fail(folder, said)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _push(self, aside: Path, state: str) -> str:
        return publish(
            plan_upload(aside),
            lambda repo: self.card(aside, repo, state),
            self.target.repo_id,
            private=self.target.private,
            revision=self.target.revision,
            token=self.target.token,
            message=f"Checkpoint {state}" if state else "Trained checkpoint and card",
        )

    def _fail(self, folder: Path, why: str) -> None:
        self.failed.append(why)
        line = " ".join(why.split())
        print(f"push of {folder} failed, training continues: {line}", flush=True)

    def publish_command(self, folder: Path) -> str:
        """The command that uploads a checkpoint folder to the repository of this push."""
        target = self.target
        return publish_command(
            folder, target.repo_id, private=target.private, revision=target.revision
        )
