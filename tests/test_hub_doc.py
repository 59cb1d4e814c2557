"""The commands for an own model, from SFT to the Hub, word for word, with a Hub on this machine."""

import re
import shlex
from pathlib import Path

import torch

from eval import run as eval_run
from pipeline.model import load_policy, values_of
from stages import ppo, publish, sft

ROOT = Path(__file__).parents[1]
MAINS = {
    "stages.sft": sft.main,
    "stages.ppo": ppo.main,
    "stages.publish": publish.main,
    "eval.run": eval_run.main,
}
# What a test can wait for, in the place of configs/small/; a few tokens a completion.
SFT = """
shares: wording=1
size: 16
max_steps: 1
per_device_train_batch_size: 4
max_length: 512
overlap: allow
disable_tqdm: true
output_dir: runs/small/sft
"""
PPO = """
shares: wording=1
size: 4
model: runs/small/sft
num_rollouts: 1
questions_per_rollout: 2
completions_per_question: 2
num_minibatches: 1
ppo_epochs: 1
max_completion_length: 8
save_every: 1
overlap: allow
disable_tqdm: true
output_dir: runs/small/ppo
"""


def commands(document: str) -> list[list[str]]:
    """The arguments behind `python -m` of every command between the marks."""
    text = (ROOT / document).read_text(encoding="utf-8")
    section = text.partition("<!-- commands -->")[2].partition("<!-- /commands -->")[0]
    return [
        shlex.split(line, comments=True)[2:]
        for line in re.findall(r"^    (python -m .*)$", section, re.M)
    ]


def test_the_readme_has_the_commands_of_the_page():
    assert commands("README.md") == commands("docs/hub.md") != []


def test_the_section_holds_as_it_is_written(hub, make_model, make_tokenizer, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base"
    model = make_model("llama", vocab_size=259)
    model.config.max_position_embeddings = 1024  # letters are tokens here
    model.save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    hub.add("Qwen/Qwen2.5-0.5B", {path.name: path.read_bytes() for path in base.iterdir()})
    small = tmp_path / "configs" / "small"
    small.mkdir(parents=True)
    (small / "sft.yaml").write_text(SFT)
    (small / "ppo.yaml").write_text(PPO)
    monkeypatch.setattr(eval_run, "read_suite", _few(eval_run.read_suite))

    steps = commands("docs/hub.md")
    assert {step[0] for step in steps} == set(MAINS)  # the whole way
    for module, *arguments in steps:
        MAINS[module](arguments)
    torch.set_num_threads(threads)

    titles = hub.repos["user/thinker"].log
    assert titles[-2:] == ["Trained checkpoint and card", "Checkpoint and card"]
    card = hub.files("user/thinker")["README.md"].decode()
    assert "| nano | greedy | 4 |" in card and "by SFT, then PPO" in card
    assert "[Qwen/Qwen2.5-0.5B](https://huggingface.co/Qwen/Qwen2.5-0.5B)" in card
    ids_BT = torch.tensor([[5, 6, 7]])
    here = load_policy("runs/small/ppo")[0](ids_BT)
    there = load_policy("user/thinker")[0](ids_BT)
    assert torch.equal(here.logits, there.logits)
    assert torch.equal(values_of(here), values_of(there))


def _few(read):
    """Four problems are enough; the command asks for fifty."""
    return lambda name, root, limit, *more: read(name, root, min(limit, 4), *more)


def test_the_page_names_only_fields_that_exist():
    text = (ROOT / "docs/hub.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `--(\w+)", text, re.M))
    assert named and named <= set(publish.PublishConfig.__dataclass_fields__)
