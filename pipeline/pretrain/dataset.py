"""Blocks to train on and blocks to measure perplexity on, from a list or a stream of problems."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from pipeline.config import require
from pipeline.data.passes import stream_of
from pipeline.pretrain.config import PretrainDataConfig
from pipeline.pretrain.documents import document, is_held_out, without_repeats
from pipeline.pretrain.packing import PackTexts
from pipeline.records import Problem

MOST_HELD_OUT = 2000  # documents that perplexity is measured on; further ones are left out
LOOKED_AT = 20_000  # first documents of a stream, among which those are found

Source = Callable[[], Iterable[Problem]]  # starts a pass over the problems


@dataclass(frozen=True)
class Documents:
    """Documents without repetitions on their two sides.

    Args:
        train: starts a pass over the documents to train on
        held_out: documents to measure perplexity on
        dropped: repetitions by degree, of the last pass
    """

    train: Callable[[], Iterator[str]]
    held_out: list[str]
    dropped: Counter[str]


def split_documents(source: Source, data: PretrainDataConfig) -> Documents:
    """The documents of a source, divided; a list is read once, a stream anew for every pass.

    Raises:
        ValueError: no document is held out although a share is asked for, or none is left.
    """
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[str]:
        dropped.clear()
        texts = (document(problem, think=data.think) for problem in source())
        return without_repeats(texts, dropped, near=not data.near_duplicates)

    documents = list(islice(kept(), LOOKED_AT if data.streaming else None))
    held_out = [text for text in documents if is_held_out(text, data.held_out_share)]
    among = f"held_out_share={data.held_out_share:g} of {len(documents):,} documents"
    require(
        bool(held_out) or data.held_out_share == 0,
        f"{among} is none, so perplexity cannot be measured; raise it, or give 0 for none",
    )
    require(len(held_out) < len(documents), f"{among} leaves none to train on; lower it")

    def train() -> Iterator[str]:
        passed = kept() if data.streaming else iter(documents)
        return (text for text in passed if not is_held_out(text, data.held_out_share))

    return Documents(train, held_out[:MOST_HELD_OUT], dropped)


def packed_blocks(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    data: PretrainDataConfig,
    *,
    max_length: int,
    seed: int,
) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """(blocks to train on, held-out blocks or None), both with the column `input_ids`.

    Documents are shuffled before they are packed; a stream in a buffer, another way each epoch.
    """
    pack = PackTexts(tokenizer, max_length)
    if data.streaming:
        stream = stream_of(lambda: ({"text": text} for text in documents.train()))
        shuffled = stream.shuffle(seed=seed, buffer_size=data.shuffle_buffer)
        train = shuffled.map(pack, batched=True, remove_columns=["text"])
    else:
        texts = Dataset.from_dict({"text": list(documents.train())}).shuffle(seed=seed)
        train = _packed(texts, pack, data.processes)
    if not documents.held_out:
        return train, None
    held_out = Dataset.from_dict({"text": documents.held_out})
    return train, _packed(held_out, pack, 1)


def _packed(texts: Dataset, pack: PackTexts, processes: int) -> Dataset:
    several = {"num_proc": processes} if processes > 1 else {}
    return texts.map(pack, batched=True, remove_columns=["text"], desc="Packing", **several)
