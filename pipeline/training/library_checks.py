"""What is checked of TRL, transformers and accelerate: supported versions, names, packages."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version

from accelerate.utils import modeling, other

SUPPORTED_TRL = ">=1.12,<1.18"


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
