"""SFT from a stream: the rows are read as they are trained on, and what cannot work is refused."""

import gzip
import json
import multiprocessing

import pytest

from pipeline.config import DataConfig, ModelConfig
from pipeline.data.sft_examples import sft_dataset, sft_stream
from pipeline.records import Problem
from pipeline.sft.trainer import ReasoningSFTConfig
from stages import sft
from stages.training_problems import problem_stream, training_problems

SUMS = [
    Problem(question=f"{a}+{a}?", thought=f"{a}+{a}={2 * a}", answer=str(2 * a)) for a in range(8)
]


def test_a_stream_gives_the_rows_of_the_list_and_starts_anew_each_time(tokenizer):
    rows, _ = sft_dataset(tokenizer, SUMS, progress=False)
    stream = sft_stream(tokenizer, lambda: iter([*SUMS, Problem(question="?", answer="1")]))
    assert list(stream) == list(stream) == list(rows)  # the one without a thought is left out


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes_encode_the_same_rows_in_the_same_order(tokenizer, start, monkeypatch):
    # A forked process has its imports already, which take a spawned one seconds.
    monkeypatch.setattr(
        "pipeline.data.sft_examples.get_context", lambda _: multiprocessing.get_context(start)
    )
    one, _ = sft_dataset(tokenizer, SUMS, progress=False)
    two, _ = sft_dataset(tokenizer, SUMS, progress=False, processes=2)
    assert list(one) == list(two)


@pytest.fixture
def options(tmp_path):
    path = tmp_path / "gsm8k" / "train.jsonl.gz"
    path.parent.mkdir()
    lines = [{"question": p.question, "answer": f"{p.thought}\n#### {p.answer}"} for p in SUMS]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    args = {
        "output_dir": str(tmp_path / "sft"),
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
        "max_length": 128,
        "logging_steps": 1,
    }
    data = DataConfig(dataset="gsm8k", data_root=str(tmp_path), streaming=True, overlap="allow")
    model = ModelConfig(
        nano_hidden_size=32,
        nano_layers=1,
        nano_heads=2,
        nano_intermediate_size=64,
        nano_vocab_size=300,
    )
    return model, data, args


def test_the_stage_trains_on_a_stream_longer_than_one_pass(options):
    model, data, args = options
    folder = sft.run(model, data, ReasoningSFTConfig(max_steps=3, **args))  # 12 rows out of 8
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert (folder / "model.safetensors").exists()


def test_the_examples_of_the_prompt_are_not_trained_on_in_a_stream(options):
    model, data, args = options
    data.few_shot = "7"  # of eight rows
    _, tokenizer, dataset = sft._prepare(model, data, ReasoningSFTConfig(max_steps=1, **args), None)
    trained = [tokenizer.decode(row["input_ids"]) for row in dataset.take(3)]
    assert len(trained) == 1 and SUMS[7].question in trained[0].rpartition("<|user|>")[2]


def conversations(tmp_path, thoughts: int) -> str:
    """A file of eight conversations that end in the same question."""
    path = tmp_path / "talk.jsonl"
    speakers = ("user", "assistant", "user", "assistant")
    rows = []
    for n in range(8):
        texts = (
            f"Say {n}.",
            str(n),
            "Why?",
            "<think>so</think>I am asked." if n < thoughts else "No",
        )
        turns = zip(speakers, texts, strict=True)
        rows.append(json.dumps({"messages": [{"role": r, "content": t} for r, t in turns]}))
    path.write_text("\n".join(rows))
    return str(path)


def test_conversations_that_end_in_the_question_of_an_example_are_trained_on(options, tmp_path):
    model, data, args = options
    data.dataset, data.few_shot = conversations(tmp_path, thoughts=8), "1"
    _, _, dataset = sft._prepare(model, data, ReasoningSFTConfig(max_steps=1, **args), None)
    assert len(list(dataset)) == 7


@pytest.mark.parametrize(
    ("thoughts", "max_length", "message"),
    [(0, 128, "none of the 8 rows .* has a thought"), (8, 3, "max_length=3 leaves none of the")],
)
def test_a_stream_without_an_example_is_refused(options, tmp_path, thoughts, max_length, message):
    model, data, args = options
    data.dataset = conversations(tmp_path, thoughts)
    with pytest.raises(ValueError, match=message):
        sft.run(model, data, ReasoningSFTConfig(max_steps=1, **args | {"max_length": max_length}))


def test_rows_without_a_thought_are_not_trained_as_empty_thoughts(options, tmp_path):
    _, data, _ = options
    data.dataset, data.direct_share = conversations(tmp_path, thoughts=2), 1.0
    assert [problem.direct for problem in problem_stream(data, seed=0)()] == [True] * 2 + [
        False
    ] * 6
    data.streaming = False
    assert [problem.direct for problem in training_problems(data, 0)] == [True] * 2 + [False] * 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "streaming=true has no length; give max_steps"),
        (
            {"max_steps": 2, "train_sampling_strategy": "group_by_length"},
            "streaming=true cannot group by length",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_refused(options, more, message):
    model, data, args = options
    with pytest.raises(ValueError, match=message):
        sft.run(model, data, ReasoningSFTConfig(**args, **more))


def test_a_stream_leaves_thoughts_empty_in_the_share_asked_for(options):
    _, data, _ = options
    data.direct_share = 0.5
    empty = [problem.direct for _ in range(25) for problem in problem_stream(data, seed=0)()]
    assert empty[:8] == empty[8:16]  # a new pass is the same
    assert 0 < sum(empty[:8]) < 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "--train_sampling_strategy random"),
        ({"think": False}, "leave one of them out"),
    ],
)
def test_a_share_of_empty_thoughts_that_would_not_be_learned_is_refused(options, more, message):
    model, data, args = options
    data.streaming, data.direct_share, data.think = False, 0.6, more.pop("think", True)
    with pytest.raises(ValueError, match=rf"direct_share=0\.6.*{message}"):
        sft.run(model, data, ReasoningSFTConfig(**args, **more))
