"""Own data by Hub id: `datasets` and its client as they are, with a Hub on this machine."""

import json

import datasets
import pytest

from pipeline.config import OwnDataConfig
from pipeline.data.problems import read_problems, stream_problems

CARD = """---
configs:
- config_name: easy
  default: true
  data_files:
  - split: train
    path: easy/train.jsonl
  - split: test
    path: easy/test.jsonl
- config_name: hard
  data_files:
  - split: train
    path: hard/train.jsonl
---
"""
NAME = "user/sums"


def rows(first: int, count: int) -> list[dict[str, str]]:
    return [{"frage": f"{n} + 1?", "answer": str(n + 1)} for n in range(first, first + count)]


def lines(first: int, count: int) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows(first, count)).encode()


@pytest.fixture
def sums(hub, tmp_path, monkeypatch):
    """A Hub with a data set of two configurations, and a later revision of it."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    files = {
        "README.md": CARD.encode(),
        "easy/train.jsonl": lines(0, 5),
        "easy/test.jsonl": lines(50, 2),
        "hard/train.jsonl": lines(100, 3),
    }
    hub.add(NAME, files)
    hub.repos[NAME].branches["v1"] = hub.repos[NAME].branches["main"]
    hub.add(NAME, files | {"easy/train.jsonl": lines(20, 4)})
    return hub


def answers(split: str = "train", **own) -> list[str]:
    config = OwnDataConfig(columns="question=frage", **own)
    return [problem.answer for problem in read_problems(NAME, split, own=config).problems]


def test_configuration_split_and_revision_choose_the_rows(sums):
    assert answers() == ["21", "22", "23", "24"]
    assert answers("test") == ["51", "52"]
    assert answers(dataset_config="hard") == ["101", "102", "103"]
    assert answers(dataset_revision="v1") == ["1", "2", "3", "4", "5"]
    assert answers(dataset_split="train[1:3]", dataset_revision="v1") == ["2", "3"]
    assert answers(dataset_split="test") == ["51", "52"]


def test_a_stream_from_the_hub_has_the_same_rows(sums):
    own = OwnDataConfig(columns="question=frage")
    assert [p.answer for p in stream_problems(NAME, "train", own=own)] == ["21", "22", "23", "24"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"dataset_config": "medium"}, "medium"),
        ({"dataset_split": "dev"}, "dev"),
        ({"dataset_revision": "v9"}, "v9"),
    ],
)
def test_a_wrong_choice_is_one_line_with_what_is_there(sums, own, message):
    with pytest.raises(ValueError, match=message) as found:
        answers(**own)
    assert "could not be loaded from the Hub" in str(found.value)
    assert "\n" not in str(found.value)


def test_an_unknown_id_and_an_unreachable_hub_are_one_line(sums):
    with pytest.raises(ValueError, match=r"user/none could not be loaded.*check"):
        read_problems("user/none", "train")
    sums.fail(".*", 503)
    with pytest.raises(ValueError, match=r"user/other could not be loaded"):
        read_problems("user/other", "train")
