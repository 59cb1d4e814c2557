"""Publishing: the real client against a Hub on this machine, and back again to the bit."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from safetensors.torch import save_file

from pipeline.device import DTYPES, DeviceOptions
from pipeline.hub import plan_upload
from pipeline.model import load_policy, save_policy, values_of
from pipeline.model.atomic import weights_fingerprint
from pipeline.model.inference import cast, load_for_inference, placement
from pipeline.runtime import write_json
from pipeline.search import NEED_VALUES
from stages import publish
from tests.following import next_command
from tests.hub_server import TOKEN, card_mistakes

NAME = "user/thinker"
IDS_BT = torch.tensor([[5, 6, 7, 8, 9, 10]])
RUN = {
    "versions": {"thinkhead": "0.1.0", "torch": "2.13.0"},
    "git": "0" * 40,
    "configs": {
        "model": {"model": "openai-like/base", "model_revision": None, "lora_r": 16},
        "data": {"dataset": "gsm8k=2,rows.jsonl=1", "data_root": "/home/ann/data", "size": 100},
        "reward": {"rewards": "correctness=1"},
        "ppo": {
            "output_dir": "/home/ann/runs/ppo",
            "learning_rate": 0.5,
            "kl_coef": 0.25,
            "max_steps": 9,
            "num_train_epochs": 3,
            "run_name": "/home/ann/runs/ppo",
        },
    },
}


@pytest.fixture
def checkpoint(tiny_policy, tokenizer, tmp_path) -> Path:
    folder = tmp_path / "ppo"
    save_policy(tiny_policy, tokenizer, folder)
    write_json(folder / "run.json", RUN)
    return folder


def see(name: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits_BTV, values_BT)"""
    model, _ = load_policy(name)
    with torch.no_grad():
        output = model(IDS_BT)
    return output.logits, values_of(output)


def measure(folder: Path, model: torch.nn.Module, suite: str = "gsm8k", **more) -> None:
    """What eval.run leaves of an evaluation."""
    metrics = {
        "suite": suite,
        "strategy": "consensus",
        "n": 50,
        "rows_read": 1319,
        "accuracy": 0.25,
        "ci95": [0.15, 0.4],
        "completion_tokens_per_question": {"mean": 12.5},
        "options": {"n": 8, "max_completion_tokens": 512},
    }
    write_json(folder / "metrics.json", metrics | more)
    write_json(folder / "settings.json", {"weights": weights_fingerprint(model)})


def test_a_published_policy_comes_back_with_logits_and_values_equal_to_the_bit(hub, checkpoint):
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    for here, there in zip(see(checkpoint), see(NAME), strict=True):
        assert torch.equal(here, there)
    # regular files in the commit, large ones through the storage
    assert any(request.startswith("PUT /lfs/") for request in hub.requests)
    assert "config.json" in hub.files(NAME)


def test_only_the_files_of_a_checkpoint_go_up(hub, checkpoint):
    private = ("training_args.bin", "optimizer.pt", "rng_state.pth", "notes.txt")
    for name in (*private, "rollout-0.safetensors"):
        (checkpoint / name).write_bytes(b"private")
    (checkpoint / "checkpoint-3").mkdir()
    (checkpoint / "checkpoint-3" / "config.json").write_text("{}")
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    assert sorted(hub.files(NAME)) == [
        ".gitattributes",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "custom_generate/generate.py",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "value_head.safetensors",
    ]


def test_nothing_that_goes_up_names_a_folder_of_this_machine(hub, checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    write_json(checkpoint / "config.json", config | {"_name_or_path": str(tmp_path)})
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    for name, content in hub.files(NAME).items():
        assert str(tmp_path).encode() not in content, name
        assert b"/home/ann" not in content, name
    assert "_name_or_path" in json.loads((checkpoint / "config.json").read_text())  # stays here


def test_a_file_that_a_newer_checkpoint_lacks_is_gone_and_others_stay(hub, checkpoint):
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    hub.add(NAME, hub.files(NAME) | {"picture.png": b"mine"})
    (checkpoint / "value_head.safetensors").unlink()
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    assert "value_head.safetensors" not in hub.files(NAME)
    assert hub.files(NAME)["picture.png"] == b"mine"
    card = hub.files(NAME)["README.md"].decode()
    assert f"cannot be used: {', '.join(NEED_VALUES)}." in card


def test_private_revision_and_title_arrive(hub, checkpoint, capsys):
    arguments = ["--private", "true", "--revision", "v2", "--message", "Second try"]
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, *arguments])
    assert next_command(capsys.readouterr().out).checkpoint == f"{NAME}@v2"
    assert hub.repos[NAME].private
    assert hub.repos[NAME].log[-1] == "Second try"
    assert "model.safetensors" in hub.files(NAME, "v2")
    assert "model.safetensors" not in hub.files(NAME, "main")
    assert torch.equal(see(f"{NAME}@v2")[1], see(checkpoint)[1])


@pytest.mark.parametrize("name", ["my model", "a/b/c", "user/name?", "x/y.git"])
def test_a_name_that_no_repository_can_have_is_refused(hub, checkpoint, capsys, name):
    with pytest.raises(SystemExit) as stop:
        publish.main(["--checkpoint", str(checkpoint), "--repo_id", name, "--dry_run", "true"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and "give user/name" in said.err


def test_the_name_alone_is_published_under_the_user(hub, checkpoint, capsys):
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", "thinker"])
    assert "model.safetensors" in hub.files(NAME)
    assert f'from_pretrained("{NAME}")' in hub.files(NAME)["README.md"].decode()


def test_a_dry_run_shows_the_card_and_the_files_and_asks_the_hub_nothing(hub, checkpoint, capsys):
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, "--dry_run", "true"])
    said = capsys.readouterr().out
    assert "# thinker" in said
    assert "value_head.safetensors" in said and "nothing was published" in said
    assert hub.requests == []


# ---- the card ----


def test_the_module_runs_as_a_script(checkpoint, capsys, monkeypatch):
    options = ["--checkpoint", str(checkpoint), "--repo_id", NAME, "--dry_run", "true"]
    monkeypatch.setattr("sys.argv", ["publish.py", *options])
    runpy.run_path(publish.__file__, run_name="__main__")
    assert "nothing was published" in capsys.readouterr().out


def test_the_card_tells_what_the_folder_knows(hub, checkpoint):
    model, _ = load_policy(checkpoint)
    measure(checkpoint / "eval" / "gsm8k", model)
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, "--license", "mit"])
    card = hub.files(NAME)["README.md"].decode()
    assert "| gsm8k | consensus@8 | 50 | 25.0 [15.0, 40.0] | 12.5 | 512 |" in card
    assert "gsm8k was evaluated on 50 of 1,319 problems." in card
    assert "| kl_coef | `0.25` |" in card and "| rewards | `correctness=1` |" in card
    assert "run_name" not in card  # neither ours nor one that shapes the model
    # nor what had no part in it: adapters that were not trained, epochs where steps were counted
    assert "lora_r" not in card and "num_train_epochs" not in card and "| max_steps | `9` |" in card
    about = ModelCard(card).data
    assert about.base_model == "openai-like/base"
    assert about.license == "mit"
    assert about.datasets == ["openai/gsm8k"]


def test_the_model_index_validates_and_has_the_interval(hub, checkpoint, tmp_path):
    model, _ = load_policy(checkpoint)
    measure(checkpoint / "eval" / "a", model)
    measure(checkpoint / "eval" / "b", model, suite="nano", options={"n": 1}, strategy="greedy")
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    card = hub.files(NAME)["README.md"]
    assert card_mistakes(card.decode()) == []
    (tmp_path / "README.md").write_bytes(card)
    index = metadata_load(tmp_path / "README.md")["model-index"]
    first = index[0]["results"][0]
    assert first["dataset"] == {"name": "gsm8k", "type": "openai/gsm8k"}
    assert first["metrics"][0]["value"] == 0.25
    assert first["metrics"][0]["args"] == {"n": 50, "ci95": [0.15, 0.4]}
    # huggingface_hub reads back what it wrote
    results = ModelCard(card.decode()).data.eval_results
    assert [(r.dataset_name, r.metric_value) for r in results] == [("gsm8k", 0.25), ("nano", 0.25)]


def test_the_servers_check_of_a_card_can_fail():
    index = {"model-index": [{"name": "x", "results": [{"task": {"type": "t"}, "metrics": []}]}]}
    mistakes = card_mistakes(f"---\n{yaml.safe_dump(index)}---\n\n# x\n")
    assert len(mistakes) == 3  # dataset.type, dataset.name, a metric


def test_samples_beside_the_evaluations_are_passed_over(checkpoint, capsys):
    model, _ = load_policy(checkpoint)
    measure(checkpoint / "eval" / "greedy", model)
    measure(checkpoint / "eval" / "samples", model)
    samples = {"suite": "gsm8k", "strategy": "samples", "n": 50, "samples": 8, "by_k": []}
    write_json(checkpoint / "eval" / "samples" / "metrics.json", samples)
    assert [found["n"] for found in publish.collect_facts(checkpoint).evaluations] == [50]
    assert "left out" not in capsys.readouterr().out


def test_figures_of_other_weights_stay_out_of_the_card(hub, checkpoint, tiny_policy, capsys):
    with torch.no_grad():
        tiny_policy.get_input_embeddings().weight[0, 0] += 1
    measure(checkpoint / "eval", tiny_policy)
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, "--dry_run", "true"])
    said = capsys.readouterr().out
    assert "1 evaluations in" in said and "are of other weights" in said
    assert "25.0 [15.0, 40.0]" not in said


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_evaluations_of_the_stored_weights_in_any_dtype_are_on_the_card(
    checkpoint, tiny_policy, tokenizer, stored, capsys
):
    cast(tiny_policy, stored)
    save_policy(tiny_policy, tokenizer, checkpoint)
    for name in ("auto", *DTYPES):
        model, _ = load_for_inference(checkpoint, DeviceOptions(dtype=name))
        measure(checkpoint / "eval" / name, model, **placement(model))
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    measure(checkpoint / "eval" / "other", model, **placement(model))
    found = publish.collect_facts(checkpoint).evaluations
    assert {metrics["dtype"] for metrics in found} == set(DTYPES) and len(found) == 4
    assert "1 evaluations in" in capsys.readouterr().out


def test_the_way_from_the_base_model_is_followed_back(checkpoint, tiny_policy, tokenizer, capsys):
    sft = checkpoint.with_name("sft")
    run = {"configs": {"model": {"model": "nano"}, "data": {}, "sft": {"learning_rate": 0.125}}}
    save_policy(tiny_policy, tokenizer, sft)
    write_json(sft / "run.json", run)
    ppo = RUN | {"configs": RUN["configs"] | {"model": {"model": str(sft)}}}
    write_json(checkpoint / "run.json", ppo)
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, "--dry_run", "true"])
    said = capsys.readouterr().out
    assert "by SFT, then PPO. It was trained from scratch." in said
    assert "**1. SFT**, from scratch" in said and "**2. PPO**, from `sft`" in said
    assert said.index("`0.125`") < said.index("`0.25`")


def test_rejection_sampling_and_the_training_of_a_verifier_are_on_the_card(
    checkpoint, tiny_policy, tokenizer, capsys
):
    rft, verifier = (checkpoint.with_name(name) for name in ("rft", "verifier"))
    for folder in (rft, verifier):
        save_policy(tiny_policy, tokenizer, folder)
    sampled = {"sft": {"learning_rate": 0.125}, "rft": {"completions_per_question": 12}}
    start = {"model": {"model": str(checkpoint)}, "data": {"dataset": "gsm8k"}}
    write_json(rft / "run.json", {"configs": start | sampled})
    fitted = {"verifier_epochs": 13, "output_dir": str(verifier), "rollouts": "/home/ann/r.jsonl"}
    source = {"source": {"checkpoint": str(rft)}, "data": {"dataset": "math"}, "verifier": fitted}
    write_json(verifier / "run.json", {"configs": source})
    publish.main(["--checkpoint", str(verifier), "--repo_id", NAME, "--dry_run", "true"])
    card = capsys.readouterr().out
    for number, (title, settings) in enumerate(
        [
            ("PPO**, from `openai-like/base`", {"kl_coef": 0.25}),
            ("RFT (rejection sampling fine-tuning)**, from `ppo`",
             {"learning_rate": 0.125, "completions_per_question": 12}),
            ("training of a verifier**, from `rft`", {"verifier_epochs": 13}),
        ],
        start=1,
    ):  # fmt: skip
        assert f"**{number}. {title}" in card
        assert all(f"| {name} | `{value}` |" in card for name, value in settings.items())
    about = ModelCard(card[card.index("---") :]).data
    assert about.base_model == "openai-like/base" and about.tags[-1] == "verifier"
    assert about.datasets == ["EleutherAI/hendrycks_math", "openai/gsm8k"]
    assert "/home/ann" not in card and str(verifier.parent) not in card


def test_adapters_and_averaged_weights_have_the_training_of_their_run_on_the_card(checkpoint):
    weights = (checkpoint / "model.safetensors").read_bytes()
    for name in ("adapter", "ema", "ema/adapter"):
        (checkpoint / name).mkdir(parents=True)
        (checkpoint / name / "model.safetensors").write_bytes(weights)
        facts = publish.collect_facts(checkpoint / name)
        assert facts.stage == "ppo" and facts.base == "openai-like/base"
    (checkpoint / "checkpoint-4").mkdir()
    steps = {"global_step": 4, "max_steps": 10}
    (checkpoint / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(steps))
    facts = publish.collect_facts(checkpoint / "checkpoint-4")
    assert (facts.stage, facts.state) == ("ppo", "after 4 of 10 steps")


def test_every_part_of_a_mixture_is_named_without_its_folder_and_a_prompt_is_no_path(
    checkpoint, capsys
):
    data = {
        "dataset": "gsm8k=2,/home/ann/a/rows.jsonl=1,/home/ann/b/rows.jsonl=1,ben/sums=1",
        "system_prompt": "Give km/h or m/s, and a/b.",
    }
    write_json(checkpoint / "run.json", {"configs": RUN["configs"] | {"data": data}})
    publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME, "--dry_run", "true"])
    card = capsys.readouterr().out
    assert "dataset `gsm8k=2,rows.jsonl=1,rows.jsonl=1,ben/sums=1`" in card
    assert "system_prompt `Give km/h or m/s, and a/b.`" in card
    assert ModelCard(card[card.index("---") :]).data.datasets == ["ben/sums", "openai/gsm8k"]


def test_a_card_of_ones_own_is_taken_as_it_is(hub, checkpoint, tmp_path):
    (tmp_path / "mine.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    arguments = ["--checkpoint", str(checkpoint), "--repo_id", NAME]
    publish.main([*arguments, "--card", str(tmp_path / "mine.md")])
    assert hub.files(NAME)["README.md"] == (tmp_path / "mine.md").read_bytes()


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("request_", "how", "message"),
    [
        ("repos/create", 401, "the Hub rejects your token; run `hf auth login` or set"),
        ("repos/create", 403, "your token has no write access there"),
        ("/commit/", 400, "the Hub refuses it (400): made to fail with 400"),
        ("/commit/", 409, "another commit is being written"),
        ("PUT /lfs", 413, "larger than the Hub accepts"),
        ("preupload", 429, "too many requests"),
        ("/commit/", 500, "the Hub has an internal error (500); try again later"),
        ("PUT /lfs", "reset", "the Hub cannot be reached"),
    ],
)
def test_a_failing_hub_is_one_line_with_the_command_to_try_again(
    hub, checkpoint, capsys, request_, how, message
):
    hub.fail(request_, how)
    arguments = ["--checkpoint", str(checkpoint), "--repo_id", NAME]
    with pytest.raises(SystemExit) as caught:
        publish.main(arguments)
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert caught.value.code == 2
    assert len(errors) == 1 and message in errors[0]
    command = re.search(r"again: python -m stages.publish (.*)", errors[0]).group(1)
    hub.heal()
    publish.main(command.split())
    assert torch.equal(see(NAME)[1], see(checkpoint)[1])


def test_a_token_in_a_file_keeps_the_file_here(hub, checkpoint, capsys):
    (checkpoint / "chat_template.jinja").write_text("{# " + TOKEN + " #}")
    with pytest.raises(SystemExit):
        publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    error = capsys.readouterr().err
    assert "chat_template.jinja contains a token of the Hub" in error and TOKEN not in error
    assert hub.requests == []


def test_a_link_is_not_followed_to_the_hub(checkpoint, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (checkpoint / "vocab.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"vocab.json is a link"):
        plan_upload(checkpoint)


def test_adapters_on_a_folder_of_this_machine_want_the_name_of_their_base(tmp_path):
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": str(tmp_path)})
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"publish it first, then give --base_model"):
        plan_upload(tmp_path)
    plan = plan_upload(tmp_path, base_model="user/base")
    assert json.loads(plan["adapter_config.json"])["base_model_name_or_path"] == "user/base"


def test_a_folder_without_weights_is_refused(tmp_path):
    write_json(tmp_path / "config.json", {})
    with pytest.raises(ValueError, match="has no weights"):
        plan_upload(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "run.json is no JSON"),
        ("[]", "run.json holds a list where a JSON object belongs"),
        ("[" * 100_000, "run.json is no JSON"),
    ],
)
def test_a_broken_run_json_is_named(hub, checkpoint, capsys, content, message):
    (checkpoint / "run.json").write_text(content)
    with pytest.raises(SystemExit):
        publish.main(["--checkpoint", str(checkpoint), "--repo_id", NAME])
    assert message in capsys.readouterr().err
    assert hub.requests == []
