"""Configuration of the distillation: the teacher, its sampling, and which samples are kept."""

from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from transformers.hf_argparser import HfArg

from pipeline.config import (
    Bounds,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Required,
    check_types,
    require,
)
from pipeline.device import DeviceOptions


def is_address(teacher: str) -> bool:
    """Whether a teacher is the address of a server, not a checkpoint.

    >>> is_address("http://127.0.0.1:8000/v1"), is_address("runs/nano/ppo")
    (True, False)
    """
    return teacher.startswith(("http://", "https://"))


@dataclass(kw_only=True)
class SelectionConfig:
    """Which samples of the teacher become SFT data."""

    max_per_question: PositiveInt = HfArg(
        default=1, help="right and distinct samples of a question that are kept"
    )
    prefer: Literal["shortest", "first"] = HfArg(
        default="shortest", help="which of them: those with the shortest thought, or the first ones"
    )
    visible: Literal["expected", "teacher"] = HfArg(
        default="expected",
        help="text after the thought: the data set's answer, or the teacher's own text; programs "
        "and puzzles always have the teacher's",
    )
    plain_as_thought: bool = HfArg(
        default=False,
        help="take the whole text of a teacher without reasoning tags as the thought",
    )

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(kw_only=True)
class DistillConfig(DeviceOptions, SelectionConfig):
    """The teacher and how it is sampled."""

    teacher: Required = HfArg(
        default="",
        help="checkpoint folder, model on the Hub, or address of an OpenAI-compatible server as in "
        "http://127.0.0.1:8000/v1",
    )
    teacher_model: str | None = HfArg(default=None, help="name of the model at the address")
    api_key_env: str = HfArg(
        default="OPENAI_API_KEY",
        help="environment variable with the key of the address; it may be unset",
    )
    n: PositiveInt = HfArg(default=4, help="samples of a question")
    temperature: Annotated[float, Bounds(ge=0, le=2)] = HfArg(
        default=0.7, help="sampling temperature"
    )
    max_tokens: PositiveInt = HfArg(default=1024, help="tokens of a sample, thought included")
    token_field: Literal["max_tokens", "max_completion_tokens"] = HfArg(
        default="max_tokens", help="address: the field of the request with that limit"
    )
    concurrency: PositiveInt = HfArg(default=8, help="address: questions asked at a time")
    retries: NonNegativeInt = HfArg(
        default=6, help="address: repetitions of a request that failed for a passing reason"
    )
    timeout: PositiveFloat = HfArg(default=600.0, help="address: seconds for one answer")
    batch_size: PositiveInt = HfArg(default=64, help="checkpoint: sequences decoded at a time")
    seed: NonNegativeInt = HfArg(default=0, help="seed of the samples and of generated problems")
    output_dir: Required = HfArg(default="", help="folder of train.jsonl, samples.jsonl and card")

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.n == 1 or self.temperature > 0,
            f"n={self.n} samples at temperature=0 are all the same; raise the temperature, or give "
            "--n 1",
        )
        if not is_address(self.teacher):
            return
        parts = urlsplit(self.teacher)
        require(
            bool(parts.hostname) and "@" not in parts.netloc and not parts.query,
            "teacher must be an address without user, password or query, such as "
            "http://127.0.0.1:8000/v1; the key comes from the variable of --api_key_env",
        )
        require(
            self.teacher_model is not None,
            f"teacher={self.teacher} is an address, which may serve several models; name one with "
            "--teacher_model",
        )

    def sampling(self) -> dict[str, object]:
        """The settings that decide the samples; a resumed run must share them."""
        names = ("teacher", "teacher_model", "n", "temperature", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names}
