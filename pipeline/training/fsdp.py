"""Adapters under FSDP2: tied embeddings that accelerate would shard twice."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def has_tied_adapted_embeddings(model: nn.Module) -> bool:
    """Return whether embedding and LM head share a weight that is not the `weight` of both.

    That is so where peft trains single rows of a tied embedding: it wraps both modules, and
    accelerate (1.15) takes their weights for two.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None:
        return False
    shared = {id(p) for p in embedding.parameters()} & {id(p) for p in head.parameters()}
    return bool(shared) and getattr(embedding, "weight", None) is not getattr(head, "weight", None)


@contextmanager
def embeddings_in_root_unit(model: nn.Module) -> Iterator[None]:
    """Context in which accelerate leaves embedding and LM head to the outermost FSDP2 unit.

    In units of their own, a weight that they share would be sharded twice, which fails with
    "TypeError: Invariant encountered". The outermost unit stays gathered in a step, as accelerate
    does with tied embeddings too.
    """
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        model.__dict__[name] = lambda: None
    try:
        yield
    finally:
        for name in names:
            del model.__dict__[name]
