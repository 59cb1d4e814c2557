"""Load a data set from the Hub; a failure is one line with its remedy."""

from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

DATA_ROOT_VARIABLE = "THINKHEAD_DATA"


def hub_dataset(
    hub_id: str, config: str | None, split: str, streaming: bool, *, revision: str | None = None
) -> Dataset | IterableDataset:
    """The rows of a split, as `datasets.load_dataset` returns them.

    Raises:
        ValueError: it cannot be loaded.
    """
    options: dict[str, Any] = {"streaming": True} if streaming else {}
    options |= {"revision": revision} if revision else {}
    try:
        return load_dataset(hub_id, config, split=split, **options)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        remedy = (
            f"accept its terms at https://huggingface.co/datasets/{hub_id} and run `hf auth login`"
            if "gated" in reason
            else f"check the network, or give data_root or {DATA_ROOT_VARIABLE} with a local copy"
        )
        raise ValueError(
            f"{hub_id} could not be loaded from the Hub: {reason}; {remedy}"
        ) from error
