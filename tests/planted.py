"""A policy whose every completion and value are written down by hand."""

import re
from types import SimpleNamespace

import torch
from transformers import Qwen3Config


class Planted(torch.nn.Module):
    """A policy written down as whole completions with their probabilities, and a value of a text.

    The next token has the probability that it has among the completions that begin as the text
    does; a text that begins none of them ends at once. What stands before a token is read out of
    the cache, where the model keeps token ids as keys: with a wrong cache it says the wrong thing.
    """

    def __init__(self, tokenizer, completions: dict[str, float], value=None, window: int = 4096):
        super().__init__()
        self.tokenizer, self.value = tokenizer, value
        self.completions = {tuple(self.ids(text)): p for text, p in completions.items()}
        self.config = Qwen3Config(num_hidden_layers=1, max_position_embeddings=window)
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        self.device = torch.device("cpu")
        self.fed = 0  # tokens that were computed
        if value is not None:
            self.value_head = torch.nn.Identity()

    def ids(self, text: str) -> list[int]:
        """One token a character; </think> and <eos> are one each."""
        parts = re.findall(r"</think>|<eos>|.", text, flags=re.DOTALL)
        names = [{"\n": "Ċ", " ": "Ġ"}.get(part, part) for part in parts]
        return self.tokenizer.convert_tokens_to_ids(names)

    def forward(self, input_ids, attention_mask, position_ids, past_key_values, **_):
        keys_n1T1 = input_ids.double()[:, None, :, None]
        seen_n1T1, _ = past_key_values.update(keys_n1T1, keys_n1T1, 0)
        ids_nT = seen_n1T1[:, 0, :, 0].long()
        mask_nT = torch.ones_like(ids_nT) if attention_mask is None else attention_mask
        self.fed += int(mask_nT[:, -input_ids.shape[1] :].sum())
        think_id = self.tokenizer.convert_tokens_to_ids("<think>")
        logits, values = [], []
        for ids, mask in zip(ids_nT, mask_nT.bool(), strict=True):
            row = ids[mask].tolist()
            text = tuple(row[row.index(think_id) + 1 :]) if think_id in row else ()
            logits.append(self._next(text))
            values.append(self.value(self.tokenizer.decode(text)) if self.value else 0.0)
        output = {"logits": torch.stack(logits)[:, None]}
        if self.value is not None:
            output["state_values"] = torch.tensor(values)[:, None]
        return output

    def _next(self, text: tuple[int, ...]) -> torch.Tensor:
        chances = torch.zeros(len(self.tokenizer))
        for ids, p in self.completions.items():
            if ids[: len(text)] == text and len(ids) > len(text):
                chances[ids[len(text)]] += p
        if not chances.any():
            chances[self.tokenizer.eos_token_id] = 1.0
        return (chances / chances.sum()).log()
