"""Process set-up of a run: threads, memory, one-line errors, and the file run.json."""

import ctypes
import errno
import functools
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import UnpicklingError
from typing import ParamSpec, TypeVar

PACKAGES = ("thinkhead", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
LAUNCHERS = (b"accelerate", b"torchrun", b"torch.distributed")
_PICKLED = (
    "a file of the checkpoint is damaged or could run code, and was not loaded; resume from a "
    "checkpoint that your own run has saved"
)
_OUT_OF_MEMORY = (
    "out of memory, or over the limit of this process (ulimit, container); lower the batch size "
    "(micro_batch_size, per_device_train_batch_size, batch_size) or the length of completions, or "
    "use a smaller model"
)
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{10,}")
P = ParamSpec("P")
R = TypeVar("R")


def prepare_cpu() -> None:
    """Configure accelerate, threads and memory for a model on a CPU; else only the threads.

    Must be called before the first accelerate or TrainingArguments object is created: otherwise
    `accelerate launch` with several CPU processes silently starts independent runs. Huge pages
    require a call directly after `import torch`, which reads THP_MEM_ALLOC_ENABLE only once.
    """
    import torch

    if torch.accelerator.current_accelerator(check_available=True) is None:
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        disable_malloc_trimming()
    # trl sets a deprecated option itself, and transformers warns the user about it.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
    set_threads()


def set_threads(threads: int | None = None) -> int:
    """Set and return the number of torch threads.

    It is `threads`, else OMP_NUM_THREADS, else the cores divided by the processes of the run, at
    most 8: small models gain little from more, and on a busy machine synchronization outweighs it.
    """
    import torch

    if threads is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        from_user = None if _launcher_set_threads() else os.environ.get("OMP_NUM_THREADS")
        threads = int(from_user) if from_user else max(1, min(8, (cores or 1) // processes))
    torch.set_num_threads(threads)
    return threads


def folder_name(name: str) -> str:
    """A name, a path or a Hub id as the name of a folder.

    >>> folder_name("gsm8k"), folder_name("/data/my rows.jsonl")
    ('gsm8k', 'data_my_rows.jsonl')
    """
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")


def disable_malloc_trimming() -> None:
    """Make glibc keep freed memory for later allocations.

    By default large blocks are returned to the system when freed, so every update would fault in
    and zero each page of each gradient again. Does nothing if the user has set MALLOC_MMAP_MAX_ or
    MALLOC_TRIM_THRESHOLD_, or without `mallopt`.
    """
    if {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _launcher_set_threads(proc: str = "/proc") -> bool:
    """Whether OMP_NUM_THREADS was set by a launcher and not by the user.

    `accelerate launch` sets it to 1 by default, which leaves all other cores idle. Linux only;
    elsewhere False.
    """
    try:
        command = Path(f"{proc}/{os.getppid()}/cmdline").read_bytes()
        variables = Path(f"{proc}/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    launched = any(name in command for name in LAUNCHERS)
    given = b"num_cpu_threads_per_process" in command
    return launched and not given and not any(v.startswith(b"OMP_NUM_") for v in variables)


def terminate_with_launcher() -> None:
    """Make the kernel send SIGTERM to this process when `accelerate launch` or torchrun dies.

    Otherwise the processes of a killed launcher would continue to train. Linux only. Does nothing
    for a process started by a shell, so that nohup keeps working.
    """
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return
    if not any(name in command for name in LAUNCHERS):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call of prctl
        os.kill(os.getpid(), signal.SIGTERM)


def environment(name: str) -> str | None:
    """Value of the variable THINKHEAD_<name>, or for one release of REASONER_<name>, its old name.

    None where neither is set.
    """
    new, old = f"THINKHEAD_{name}", f"REASONER_{name}"
    if new not in os.environ and old in os.environ:
        _note_renamed(old, new)
    return os.environ.get(new, os.environ.get(old))


@functools.cache  # once a process
def _note_renamed(old: str, new: str) -> None:
    print(f"note: the environment variable {old} is now {new}", file=sys.stderr)


def one_line_errors(main: Callable[P, R]) -> Callable[P, R]:
    """Decorator: print errors caused by the user as one line on stderr and exit with code 2.

    These are ValueError, OSError, ImportError, out of memory and damaged checkpoint files; Ctrl-C
    exits with 130. THINKHEAD_TRACEBACK=1 keeps the traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        # OSError is also what transformers raises for a model that the Hub does not have, and
        # ImportError what it raises for an optional package that is not installed.
        except (ValueError, OSError, ImportError) as error:
            if environment("TRACEBACK"):
                raise
            message = redacted(" ".join(error_message(error).split()))
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or environment("TRACEBACK"):
                raise
            print(f"error: {_OUT_OF_MEMORY}", file=sys.stderr)
            raise SystemExit(2) from None
        except UnpicklingError:  # torch's message explains how to load the file unsafely
            if environment("TRACEBACK"):
                raise
            print(f"error: {_PICKLED}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


def error_message(error: Exception) -> str:
    """The message of an error; of one of the system without its number.

    >>> error_message(FileNotFoundError(2, "No such file or directory", "a.jsonl"))
    'a.jsonl: no such file or directory; check the path'
    >>> error_message(OSError(28, "No space left on device"))
    'no space left on the disk; free space, then run the same command again'
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        file = f"{error.filename}: " if error.filename is not None else ""
        return f"{file}no space left on the disk; free space, then run the same command again"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        strerror = error.strerror[:1].lower() + error.strerror[1:]
        return f"{error.filename}: {strerror}; check the path"
    return str(error) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports failed allocation; torch has no class for that of CPU memory.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    message = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (
            type(error).__name__ == "OutOfMemoryError"
            or "DefaultCPUAllocator" in message
            or "out of memory" in message
            or "std::bad_alloc" in message
        )
    )


def redacted(text: str) -> str:
    """The text with Hub tokens replaced: those of this user, and strings that look like one.

    >>> redacted("--hub_tokn hf_AbCdEfGhIjKlMnOp is no argument")
    '--hub_tokn <HUB_TOKEN> is no argument'
    """
    for token in _tokens():
        text = text.replace(token, "<HUB_TOKEN>")
    return _TOKEN.sub("<HUB_TOKEN>", text)


def write_run_info(folder: Path, **configs: object) -> None:
    """Write `run.json`: versions, machine, git revision and the given configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", run_info(**configs))


def config_names(folder: Path) -> set[str]:
    """The names of the configurations in the run.json of a folder; none without that file.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        return set()
    configs = read_object(path, "give another --output_dir, or delete that folder").get("configs")
    return set(configs) if isinstance(configs, dict) else set()


def run_info(**configs: object) -> dict[str, object]:
    """The content of `run.json`."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "git": _git_revision(),
        "configs": {name: _plain(config) for name, config in configs.items()},
    }


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically: to a temporary file beside `path`, then renamed.

    NaN, an undefined figure, and infinity are written as null: JSON has neither.
    """
    write_text(path, json.dumps(finite_numbers(content), indent=2, default=str) + "\n")


def finite_numbers(content: object) -> object:
    """The content with None for every number that is infinite or NaN, which JSON does not have.

    >>> finite_numbers({"a": [1.0, float("inf")]})
    {'a': [1.0, None]}
    """
    if isinstance(content, Mapping):
        return {name: finite_numbers(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite_numbers(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def same_when_stored(one: object, other: object) -> bool:
    """Whether two values are equal once `write_json` has stored them.

    >>> same_when_stored(None, float("inf")), same_when_stored(None, 1.0)
    (True, False)
    """
    return finite_numbers(one) == finite_numbers(other)


def write_text(path: Path, text: str) -> None:
    """Write text atomically: to a temporary file beside `path`, then renamed.

    Raises:
        OSError: of `path`; no temporary file stays, and an earlier file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".tmp")
    try:
        staged.write_text(text, encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        with suppress(OSError):
            staged.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def naming_damage(path: Path, remedy: str) -> Iterator[None]:
    """Context that reads JSON of the file `path`; what is damaged there is a ValueError with the
    file and the remedy."""
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error


def read_object(path: Path, remedy: str) -> dict[str, object]:
    """The JSON object in a file; ValueError as of `naming_damage`."""
    return parse_object(path, path.read_bytes(), remedy)


def parse_object(path: Path, text: bytes, remedy: str) -> dict[str, object]:
    """The JSON object in a text of the file `path`; ValueError as of `naming_damage`."""
    with naming_damage(path, remedy):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("no JSON object")
        return content


def _tokens() -> set[str]:
    """Hub tokens of this user, from the environment and from `hf auth login`."""
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
    found = {os.environ.get(name, "") for name in names}
    home = os.environ.get("HF_HOME", os.path.join("~", ".cache", "huggingface"))
    path = Path(os.environ.get("HF_TOKEN_PATH", os.path.join(home, "token"))).expanduser()
    if path.is_file():
        found.add(path.read_text(encoding="utf-8", errors="ignore").strip())
    return {token for token in found if len(token) >= 8}


def _plain(config: object) -> object:
    """The configuration as JSON data."""
    if hasattr(config, "to_dict"):
        return config.to_dict()  # TrainingArguments masks its tokens here
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else config


@functools.cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
