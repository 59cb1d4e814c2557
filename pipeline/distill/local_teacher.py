"""A teacher that runs here: a checkpoint of this project, or any causal LM."""

from collections.abc import Iterator, Mapping
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompt_settings import template_fingerprint
from pipeline.distill.config import DistillConfig
from pipeline.distill.teacher import LENGTH, STOP, TeacherSample, split_text
from pipeline.model.atomic import weights_fingerprint
from pipeline.records import Answer, Problem
from pipeline.search import SearchOptions, sample_answers


class LocalTeacher:
    """Samples a model; a sample depends on its question and the options, not on the others.

    A model without reasoning tokens is asked plainly; tags that it writes as text count.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: DistillConfig
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._options = SearchOptions(
            n=config.n,
            temperature=config.temperature,
            max_sample_tokens=config.max_tokens,
            answer_tokens=0,  # a thought that the budget closes is no example
            batch_size=config.batch_size,
            seed=config.seed,
        ).for_model(tokenizer)

    def fingerprints(self) -> dict[str, object]:
        """Hash of the weights, and of the chat template with the system prompt."""
        return {
            "weights": weights_fingerprint(self._model),
            "chat_template": template_fingerprint(self._tokenizer),
        }

    def sample(self, problems: Mapping[int, Problem]) -> Iterator[tuple[int, list[TeacherSample]]]:
        """As `Teacher.sample`, in the order of the problems.

        Raises:
            ValueError: a prompt and its answer do not fit the model's context window.
        """
        options, left = self._options, iter(problems.items())
        while part := dict(islice(left, max(1, options.batch_size // options.n))):
            groups = sample_answers(
                self._model,
                self._tokenizer,
                [problem.prompt for problem in part.values()],
                options,
                temperature=options.temperature,
            )
            for number, answers in zip(part, groups, strict=True):
                yield number, [as_sample(answer) for answer in answers]


def as_sample(answer: Answer) -> TeacherSample:
    """The sample of an answer; one that its budget ended has finish LENGTH.

    >>> as_sample(Answer(text="2", thought="1+1=2")).thought
    '1+1=2'
    """
    finish = STOP if answer.finish_reason == "stop" and not answer.forced else LENGTH
    tokens = answer.usage.completion_tokens
    if answer.thought:
        return TeacherSample(answer.thought, answer.text, finish, tokens)
    return split_text(answer.text, tokens, finish)
