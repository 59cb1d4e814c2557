"""SFT examples from worked solutions: token ids with masks for the thought and the answer.

    prompt ... <think>   thought </think> answer <eos>     completion_mask 1 on the right half
    prompt ... <think></think>            answer <eos>     direct answer, think=False

Masks are computed from token ids, not from text, so they are right for any tokenizer, also if the
padding token is the end-of-text token.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context

import torch
from datasets import Dataset, IterableDataset
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import encode_prompt
from pipeline.chat.tags import END_THINK
from pipeline.data.passes import stream_of
from pipeline.grading.equivalence import boxed
from pipeline.records import Problem

TRACE_STYLES = ("words", "equations")

CALCULATOR_MARK = re.compile(r"<<(.*?)>>")
# A number whose commas separate thousands; commas of lists, pairs and decimals are no such commas.
THOUSANDS = re.compile(r"[-+]?[$€£]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")


def gsm8k_trace(answer_field: str, *, style: str = "words") -> tuple[str, str]:
    """(thought, answer) of GSM8K's worked solution; the answer is "" if there is no ####.

    The answer is a number without thousands separators, or as it is written.

    style "words" keeps the sentences, one a line, without the calculator marks; "equations" keeps
    the equations of the marks only, or the sentences of a solution without marks.

    Raises:
        ValueError: an unknown style.

    >>> field = "He has 2*3 = <<2*3=6>>6 pens.\\nThey cost 6*200 = <<6*200=1200>>1200\\n#### 1,200"
    >>> gsm8k_trace(field, style="equations")
    ('2*3=6\\n6*200=1200', '1200')
    >>> gsm8k_trace(field)[0]
    'He has 2*3 = 6 pens.\\nThey cost 6*200 = 1200'
    """
    if style not in TRACE_STYLES:
        raise ValueError(f"style={style!r} is not one of {', '.join(TRACE_STYLES)}")
    solution, mark, answer = answer_field.rpartition("####")
    if not mark:
        solution, answer = answer, ""
    equations = CALCULATOR_MARK.findall(solution)
    sentences = [line.strip() for line in CALCULATOR_MARK.sub("", solution).splitlines()]
    lines = equations if style == "equations" and equations else sentences
    thought = "\n".join(line for line in lines if line)
    answer = answer.strip()
    return thought, answer.replace(",", "") if THOUSANDS.fullmatch(answer) else answer


def math_trace(solution: str) -> tuple[str, str]:
    r"""(thought, visible answer) of a MATH solution; the answer is "" if nothing is boxed.

    >>> math_trace(r"Half of 6 is \boxed{3}.")
    ('Half of 6 is \\boxed{3}.', '\\boxed{3}')
    """
    answer = (boxed(solution) or "").strip()
    return solution.strip(), _box(answer) if answer else ""


def visible_answer(problem: Problem) -> str:
    r"""The text after the thought: the answer, in \boxed{} if the worked solution has it so.

    >>> visible_answer(Problem(question="", thought=r"Half of 6 is \boxed{3}.", answer="3"))
    '\\boxed{3}'
    """
    as_written = (boxed(problem.thought) or "").strip()
    return _box(problem.answer) if as_written == problem.answer else problem.answer


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem,
    *,
    think: bool = True,
    max_length: int | None = None,
) -> dict[str, list[int]] | None:
    """{input_ids, completion_mask}, or None for an example of more than max_length tokens.

    completion_mask is 1 on the trained tokens: thought, </think>, answer and end-of-text, except
    for `Problem.untrained_spans`; with think=False answer and end-of-text only. The thought of a
    problem with `direct` is empty.

    Raises:
        ValueError: with `think` a problem without a thought, unless it is `direct`.
    """
    if think and not (problem.thought or problem.direct):
        raise ValueError(
            f"problem {problem.source}:{problem.id} has no thought to train on; "
            "leave it out, or train the direct answer with think=False"
        )
    prompt = encode_prompt(tokenizer, problem.prompt, think=think)
    completion = [*_ids(tokenizer, problem, visible_answer(problem)), _eos_id(tokenizer)]
    untrained: set[int] = set()
    if think:
        end_think = tokenizer.convert_tokens_to_ids(END_THINK)
        if problem.direct:
            completion = [end_think, *completion]
        else:
            completion = [*_ids(tokenizer, problem, problem.thought), end_think, *completion]
            untrained = _untrained_tokens(tokenizer, problem)
    if max_length is not None and len(prompt) + len(completion) > max_length:
        return None
    return {
        "input_ids": prompt + completion,
        "completion_mask": [0] * len(prompt)
        + [int(i not in untrained) for i in range(len(completion))],
    }


def sft_dataset(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    think: bool = True,
    max_length: int | None = None,
    progress: bool = True,
    processes: int = 1,
) -> tuple[Dataset, int]:
    """(examples in the order of the problems, number of examples left out as too long).

    Raises:
        ValueError: a problem has no thought, or every example is longer than `max_length`.
    """
    encode = partial(encode_example, tokenizer, think=think, max_length=max_length)
    if processes > 1:
        with get_context("spawn").Pool(processes) as pool:
            examples = pool.map(encode, problems, chunksize=256)
    else:
        rows = track(problems, description="Encoding examples", disable=not progress)
        examples = [encode(problem) for problem in rows]
    kept = [example for example in examples if example is not None]
    if not kept:
        raise ValueError(
            f"max_length={max_length} leaves none of {len(problems)} examples; "
            "raise max_length or give more problems"
        )
    return Dataset.from_list(kept), len(examples) - len(kept)


def sft_stream(
    tokenizer: PreTrainedTokenizerBase,
    problems: Callable[[], Iterable[Problem]],
    *,
    think: bool = True,
    max_length: int | None = None,
) -> IterableDataset:
    """The examples of a stream of problems, encoded lazily; `problems()` starts a new pass.

    Leaves out examples that are too long, and with think=True problems without a thought.
    """

    def examples() -> Iterator[dict[str, list[int]]]:
        for problem in problems():
            if think and not (problem.thought or problem.direct):
                continue
            example = encode_example(tokenizer, problem, think=think, max_length=max_length)
            if example is not None:
                yield example

    return stream_of(examples)


def thought_and_answer_masks(
    input_ids_BT: torch.Tensor, mask_completion_BT: torch.Tensor, end_think_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask_thought_BT, mask_answer_BT) of the completions; </think> belongs to the thought.

        E(t) = last s <  t with input_ids[s] == </think>
        M(t) = last s <= t outside a completion
        t is answer iff t is in a completion and E(t) >= M(t), else thought

    In a packed row the prompt of the second example moves M past the </think> of the first. The
    prompt of a direct answer ends in </think>, so E = M there and the whole completion is answer.
    """
    mask_completion_BT = mask_completion_BT.bool()
    position_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    # "None so far" is -2 for E and -1 for M: a completion without </think> is all thought.
    seen_BT = torch.where(input_ids_BT == end_think_id, position_T, -2).cummax(dim=1).values
    end_BT = torch.nn.functional.pad(seen_BT, (1, -1), value=-2)  # strictly before t
    outside_BT = torch.where(mask_completion_BT, -1, position_T).cummax(dim=1).values
    mask_answer_BT = mask_completion_BT & (end_BT >= outside_BT)
    return mask_completion_BT & ~mask_answer_BT, mask_answer_BT


def _box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _ids(tokenizer: PreTrainedTokenizerBase, problem: Problem, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    control = {*tokenizer.convert_tokens_to_ids(list(tokenizer.chat_control_tokens))}
    control.add(tokenizer.eos_token_id)
    found = next((token_id for token_id in ids if token_id in control), None)
    if found is not None:
        raise ValueError(
            f"problem {problem.source}:{problem.id} contains the control token "
            f"{tokenizer.convert_ids_to_tokens(found)!r} in its thought or answer, which would "
            "end or open a part too early; take it out of the text"
        )
    return ids


def _untrained_tokens(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> set[int]:
    """Positions of the thought's tokens that overlap an untrained span, by character offsets."""
    if not problem.untrained_spans:
        return set()
    spans = tokenizer(
        problem.thought, add_special_tokens=False, return_offsets_mapping=True
    ).offset_mapping
    return {
        i
        for i, (start, end) in enumerate(spans)
        if any(
            start < span_end and end > span_start
            for span_start, span_end in problem.untrained_spans
        )
    }


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"eos_token=None of tokenizer {tokenizer.name_or_path!r}: an answer must end in an "
            "end-of-text token; set tokenizer.eos_token to one of its tokens"
        )
    return tokenizer.eos_token_id
