"""Resolve the name of a checkpoint to a folder.

    runs/nano/ppo             a folder
    user/name[@revision]      a model on the Hub
    checkpoint-N              also of sharded weights (FSDP2), which are gathered once
    model.gguf                a GGUF file, also the only one of a folder or of a model on the Hub
    smol                      SmolLM2-135M-Instruct (`pipeline.model.smol`)

Only files of a checkpoint are downloaded from the Hub (CHECKPOINT_FILES): no pickle, no code, no
archive. `pipeline.model.trust` checks them before they are used.
"""

import re
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.model import smol
from pipeline.model.atomic import checkpoints, restore
from pipeline.model.gguf import cache_folder, converted, gguf_file
from pipeline.model.plain_copy import plain_copy
from pipeline.model.shards import is_sharded_checkpoint
from pipeline.model.trust import (
    ADAPTER_CONFIG,
    CHECKPOINT_FILES,
    check_checkpoint,
)


def resolve_checkpoint(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded to the cache if it is on the Hub.

    Raises OSError if there is no such checkpoint, ValueError if check_checkpoint refuses it.
    """
    path = Path(name).expanduser()
    restore(path.absolute())
    if str(name) == smol.SMOL and not path.exists():
        return _checked(_smol_folder(revision))
    file = gguf_file(path)
    if file is not None:
        return _checked(converted(file))
    on_hub = None if path.exists() else hub_name(str(name), path)
    if on_hub is None:
        if not (path / "config.json").exists() and not (path / ADAPTER_CONFIG).exists():
            saved = checkpoints(path)
            raise FileNotFoundError(
                f"{name} holds an unfinished training; run its command again to finish it, or "
                f"give {name}/{saved[0].name}"
                if saved
                else f"{name} has no config.json, so it is no checkpoint folder; give the "
                "output folder of a training, or a folder with a Hugging Face model"
            )
        return _checked(plain_copy(path) if is_sharded_checkpoint(path) else path)
    repo, named = on_hub
    if named and revision and named != revision:
        raise ValueError(f"{name} names the revision {named}, and revision={revision} another one")
    return fetch(repo, named or revision)


def was_converted(folder: Path) -> bool:
    """Whether a resolved folder is in the cache of converted files."""
    return folder.parent == cache_folder()


def _checked(folder: Path) -> Path:
    check_checkpoint(folder)
    return folder


def _smol_folder(revision: str | None) -> Path:
    file = smol.packaged_gguf()
    if file is not None:
        return converted(file, base_model=smol.REPO)
    try:
        return fetch(smol.REPO, revision)
    except OSError as error:
        raise OSError(
            f"model=smol needs the package {smol.PACKAGE}, or {smol.REPO} from the Hub, and "
            f"neither is there; {smol.REMEDY}"
        ) from error


def folder_or_download(name: str | Path, revision: str | None = None) -> Path:
    """The folder as it is if it exists, also without a model in it; else as resolve_checkpoint.

    For single files of a folder: a checkpoint-N of adapters has a value head and no config.json.
    """
    return Path(name) if Path(name).is_dir() else resolve_checkpoint(name, revision)


def hub_name(name: str, path: Path) -> tuple[str, str | None] | None:
    """(repository, revision or None) of `user/name@revision`; FileNotFoundError for a path.

    >>> hub_name("user/name@v2", Path("user/name@v2"))
    ('user/name', 'v2')
    >>> hub_name("gpt2", Path("gpt2"))
    ('gpt2', None)
    """
    found = re.fullmatch(r"([\w-][\w.-]*(?:/[\w.-]+)?)(?:@([\w./-]+))?", name)
    # "runs/nano" could be both; if the folder "runs" exists, it is a path.
    if not found or ("/" in found.group(1) and path.parent.exists() and "@" not in name):
        raise FileNotFoundError(
            f"{name} does not exist; give a checkpoint folder or the name of a model on the Hub"
        )
    return found.group(1), found.group(2)


def fetch(repo: str, revision: str | None = None) -> Path:
    """The folder in the Hub's cache with the checkpoint files of a repository.

    Raises:
        OSError: the Hub has no such model or revision, or cannot be reached.
        ValueError: its files are no checkpoint that may be loaded.
    """
    where = f"{repo}@{revision}" if revision else repo

    def refused(reason: str) -> OSError:
        # A mistyped path may look like a name on the Hub, so the error covers both readings.
        return OSError(f"{where} is no folder here, and {reason}; check the path or the name")

    try:
        folder = Path(
            HfApi().snapshot_download(
                repo, revision=revision, allow_patterns=list(CHECKPOINT_FILES)
            )
        )
    except RepositoryNotFoundError as error:
        raise refused("the Hub has no such model, or none that your token may read") from error
    except RevisionNotFoundError as error:
        raise refused("the model on the Hub has no revision of that name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise refused("the Hub cannot be reached and the cache has no copy of it") from error
    except OSError as error:
        raise refused(f"the Hub answered: {str(error).splitlines()[0]}") from error
    if not (folder / "config.json").exists() and not (folder / ADAPTER_CONFIG).exists():
        file = _only_gguf(repo, revision)
        if file is not None:
            return _checked(converted(file))
        raise refused("the repository of that name has no config.json, so it is no causal LM")
    check_checkpoint(folder, where)
    return folder


def _only_gguf(repo: str, revision: str | None) -> Path | None:
    """The downloaded GGUF file of a repository with one; ValueError if there are several."""
    names = [n for n in HfApi().list_repo_files(repo, revision=revision) if n.endswith(".gguf")]
    if len(names) > 1:
        raise ValueError(
            f"{repo} has {len(names)} GGUF files ({', '.join(sorted(names)[:5])}, ...); download "
            f"one (hf download {repo} {min(names)}) and give its path"
        )
    if not names:
        return None
    return Path(HfApi().hf_hub_download(repo, names[0], revision=revision))
