"""The whole way with own data and own prompts on a tiny model: SFT, PPO, evaluation, a question."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eval import run as eval_run
from pipeline.chat.prompt_settings import stored_prompt
from stages import infer, ppo, sft

SFT = """
model: nano
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 64
nano_vocab_size: 300
max_steps: 2
per_device_train_batch_size: 4
disable_tqdm: true
columns: {question: frage, answer: antwort}
"""
PPO = """
num_rollouts: 2
questions_per_rollout: 4
completions_per_question: 2
num_minibatches: 1
ppo_epochs: 1
max_completion_length: 8
disable_tqdm: true
columns: question=frage,answer=antwort
"""


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch) -> None:
    """The generated suites are enough to compare with."""
    monkeypatch.delenv("THINKHEAD_DATA", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("own")
    for name, numbers in (("train", range(24)), ("test", range(24, 30))):
        rows = [
            {"frage": f"What is {n} + 1?", "antwort": f"{n}+1={n + 1}\n#### {n + 1}"}
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sft.yaml").write_text(SFT)
    (folder / "ppo.yaml").write_text(PPO)
    yield folder
    torch.set_num_threads(threads)


def test_own_rows_and_prompts_walk_from_sft_to_an_answer(folder, capsys):
    data = ["--dataset", str(folder / "train.jsonl")]
    first = ["--config", str(folder / "sft.yaml"), *data, "--output_dir", str(folder / "sft")]
    first += ["--system_prompt", "Add.", "--few_shot", "1"]
    sft.main([*first, "--dry_run", "true"])
    shown = capsys.readouterr().out
    assert "SFT on 23 examples" in shown  # one is the example of the prompt
    assert "text: 'Add.\\n\\n<|user|>What is 0 + 1?" in shown
    sft.main(first)

    second = ["--config", str(folder / "ppo.yaml"), *data, "--model", str(folder / "sft")]
    second += ["--output_dir", str(folder / "ppo")]
    ppo.main([*second, "--dry_run", "true"])
    assert "expected answer: '1'" in capsys.readouterr().out
    ppo.main(second)
    stored = stored_prompt(AutoTokenizer.from_pretrained(folder / "ppo"))
    assert stored.system_prompt == "Add."
    assert [(e.question, e.thought, e.answer) for e in stored.examples] == [
        ("What is 0 + 1?", "0+1=1", "1")
    ]

    measured = ["--checkpoint", str(folder / "ppo"), "--max_completion_tokens", "8"]
    out = folder / "eval"
    third = [*measured, "--suite", str(folder / "test.jsonl"), "--output_dir", str(out)]
    eval_run.main([*third, "--columns", "question=frage,answer=antwort"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["suite"], metrics["n"], metrics["rows_read"]) == ("test.jsonl", 6, 6)
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["expected"] for record in records] == [str(n + 1) for n in range(24, 30)]
    assert json.loads((out / "settings.json").read_text())["system_prompt"] == "Add."

    capsys.readouterr()
    infer.main([*measured, "--question", "What is 1 + 1?", "--system_prompt", "none"])
    without = capsys.readouterr().out
    infer.main([*measured, "--question", "What is 1 + 1?"])
    assert prompt_tokens(capsys.readouterr().out) > prompt_tokens(without)


def prompt_tokens(printed: str) -> int:
    return int(printed.split(" prompt +")[0].split()[-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "1+1?"}], "no column is known to have a question; it has: text"),
        ([{"frage": "1+1?", "antwort": "2"}], "has a thought, and SFT trains worked solutions"),
        ([{"frage": "1+1?", "antwort": [2]}], "row 1: field answer is not text"),
    ],
)
def test_rows_that_cannot_be_trained_on_end_sft_in_one_line(
    folder, tmp_path, capsys, rows, message
):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--config", str(folder / "sft.yaml"), "--dataset", str(path)]
    if "text" in rows[0]:
        command += ["--columns", ""]
    with pytest.raises(SystemExit) as end:
        sft.main([*command, "--output_dir", str(tmp_path / "out")])
    error = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and message in error[-1]
    assert not (tmp_path / "out" / "config.json").exists()


def test_ppo_refuses_a_stream(folder, tmp_path, capsys):
    command = ["--config", str(folder / "ppo.yaml"), "--model", str(folder)]
    with pytest.raises(SystemExit):
        ppo.main([*command, "--streaming", "true", "--output_dir", str(tmp_path / "out")])
    assert "streaming=true is for SFT" in capsys.readouterr().err
