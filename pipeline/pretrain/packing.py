"""Documents as blocks of equal length; only the last block of a call can be shorter.

    document 1 <eos> document 2 <eos> docu | ment 3 <eos> document 4 ...

Every document begins with BOS where the tokenizer begins every text with it, as those of Llama do.
A block may begin within a document, and its tokens attend to the documents before them in the
block, as in GPT-2 and GPT-3; the end token tells the model where the next one begins.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.chat.template import writes_bos

IGNORED = -100  # label of a token without a loss


def pack(
    documents: Iterable[Sequence[int]], end_id: int, length: int, *, start_id: int | None = None
) -> list[list[int]]:
    """Blocks of `length` token ids; the last may be shorter. `start_id` None: no start token.

    >>> pack([[1, 2, 3], [4]], end_id=0, length=4)
    [[1, 2, 3, 0], [4, 0]]
    >>> pack([[1, 2, 3], [4]], end_id=0, length=8, start_id=9)
    [[9, 1, 2, 3, 0, 9, 4, 0]]
    """
    start = () if start_id is None else (start_id,)
    ids = [token_id for ids in documents for token_id in (*start, *ids, end_id)]
    return [ids[first : first + length] for first in range(0, len(ids), length)]


class PackTexts:
    """A function for `map(batched=True)` of datasets: {"text"} to {"input_ids"}.

    A batch of documents ends in a block that may be shorter. A block of one token, which has
    nothing to predict, is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.start_id = tokenizer.bos_token_id if writes_bos(tokenizer) else None

    def __call__(self, batch: Mapping[str, list[str]]) -> dict[str, list[list[int]]]:
        """Return the blocks of a batch of documents."""
        # split_special_tokens: a "<eos>" written in a document is text.
        ids = self.tokenizer(
            batch["text"],
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        blocks = pack(ids, self.tokenizer.eos_token_id, self.length, start_id=self.start_id)
        return {"input_ids": [block for block in blocks if len(block) > 1]}


class BlockCollator:
    """Blocks as a batch {input_ids, attention_mask, labels}, each (B, T) int64.

    Shorter blocks are padded on the right. The label of a position is its own token, which the
    model shifts; the first of a block and padding have none.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, blocks: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Return the batch of some blocks."""
        lengths_B = torch.tensor([len(block["input_ids"]) for block in blocks])
        ids_BT = torch.full((len(blocks), int(lengths_B.max())), self.pad_id)
        for ids_T, block in zip(ids_BT, blocks, strict=True):
            ids_T[: len(block["input_ids"])] = torch.tensor(block["input_ids"])
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B[:, None]
        labels_BT = ids_BT.masked_fill(~mask_BT, IGNORED)
        labels_BT[:, 0] = IGNORED
        return {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "labels": labels_BT}
