"""An output folder that holds another run is refused; an unfinished run is resumed."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.answers.run_folder import RunFolder
from pipeline.config import ModelConfig, StageConfig
from pipeline.model import load_policy, save_policy
from pipeline.model.atomic import write_manifest
from pipeline.sft.trainer import ReasoningSFTConfig
from pipeline.training.output_folder import clear_output, plan_output
from pipeline.training.run_settings import deciding
from stages import merge, ppo, preflight, recipe, rft, sft, verifier
from stages.preflight import check_model, check_packages, check_start, check_writable
from stages.verifier_rollouts import is_verifier_folder
from tests.test_stages import SFT, InterruptAt


@pytest.fixture
def args(tmp_path) -> ReasoningSFTConfig:
    return ReasoningSFTConfig(output_dir=str(tmp_path / "out"), max_steps=4)


def _plan(args, overwrite=False, model="nano"):
    return plan_output(args, model=model, overwrite=overwrite)


def _save(args, step: int = 2, **facts) -> Path:
    folder = Path(args.output_dir) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder, **({"settings": deciding(args, 1, None, {})} | facts))
    return folder


def test_a_missing_and_an_empty_folder_start_a_run(args):
    assert _plan(args) is None
    Path(args.output_dir).mkdir()
    assert _plan(args) is None


def test_an_unfinished_run_with_equal_settings_is_resumed(args):
    _save(args)
    assert _plan(args) == "last"
    assert _plan(args, overwrite=True) is None


def test_an_unfinished_run_with_other_settings_is_refused_with_their_names(args):
    _save(args)
    args.learning_rate, args.seed = 0.5, 7
    with pytest.raises(ValueError, match=r"learning_rate=2e-05.*seed=42.*overwrite_output_dir"):
        _plan(args)


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("run.json", "a finished run"),
        ("metrics.json", "an evaluation"),
        ("recipe.json", "a recipe"),
        ("config.json", "a model"),
    ],
)
def test_a_folder_with_another_result_is_refused(args, mark, what):
    Path(args.output_dir).mkdir()
    (Path(args.output_dir) / mark).write_text("{}")
    with pytest.raises(ValueError, match=f"holds {what}; give another --output_dir"):
        _plan(args)
    assert _plan(args, overwrite=True) is None


def test_a_run_does_not_overwrite_the_model_that_it_starts_from(args):
    Path(args.output_dir).mkdir()
    (Path(args.output_dir) / "run.json").write_text("{}")
    for part in ("", "adapter", "checkpoint-2"):
        model = Path(args.output_dir) / part
        model.mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="the model that this run starts from"):
            _plan(args, overwrite=True, model=str(model))
    beside = Path(args.output_dir) / "start"
    beside.mkdir()
    assert _plan(args, overwrite=True, model=str(beside)) is None


def test_a_checkpoint_without_state_to_resume_from_is_refused(args):
    _save(args, save_only_model=True)
    with pytest.raises(ValueError, match="checkpoint-2, which has no state to resume from"):
        _plan(args)
    (Path(args.output_dir) / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="checkpoint-2, which has no manifest"):
        _plan(args)


def test_a_run_on_a_stream_is_resumed(args):
    settings = deciding(args, 1, None, {})
    # As TRL and `stages.pretrain` set it for a stream.
    settings["accelerator_config"] = {**settings["accelerator_config"], "dispatch_batches": False}
    _save(args, settings=settings)
    assert _plan(args) == "last"


def test_a_finished_run_is_resumed_on_request(args):
    saved = _save(args)
    (Path(args.output_dir) / "run.json").write_text("{}")
    for asked in ("last", str(saved)):
        args.resume_from_checkpoint = asked
        assert _plan(args) == asked


def test_a_replaced_run_leaves_nothing_of_itself_and_all_that_is_not_its_own(args):
    out = _save(args).parent
    for name in ("model.safetensors", "tokenizer.json", "run.json", "log.jsonl", "notes.txt"):
        (out / name).write_text("{}")
    for name in ("adapter", "completions", "ema", "value_model"):
        (out / name).mkdir()
        (out / name / "file").write_text("")
    clear_output(out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_evaluation_and_recipe_refuse_the_folder_of_a_training(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a finished run; give another --output_dir"):
        RunFolder(tmp_path, {}, chunk=1, total=1)
    with pytest.raises(SystemExit):
        recipe.main(["--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_damaged_rows_or_settings_of_stored_answers_are_named_with_the_remedy(tmp_path):
    folder: RunFolder = RunFolder(tmp_path, {"n": 1}, chunk=1, total=2)
    folder.append([{"id": "a"}])
    (tmp_path / "records.jsonl").write_text('{"id": \n')
    with pytest.raises(ValueError, match=r"records.jsonl is damaged .*; delete it, and"):
        RunFolder(tmp_path, {"n": 1}, chunk=1, total=2)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged .*; choose another"):
        RunFolder(tmp_path, {"n": 1}, chunk=1, total=2)


@pytest.mark.parametrize("left", ["a finished run", "a model", "an unfinished run"])
@pytest.mark.parametrize("command", ["verifier", "merge"])
def test_a_verifier_and_a_merge_do_not_replace_a_trained_model(
    tmp_path, tiny_policy, tokenizer, capsys, command, left
):
    out = tmp_path / "sft"
    save_policy(tiny_policy, tokenizer, out)
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    if left == "a finished run":
        (out / "run.json").write_text(json.dumps({"configs": {"sft": {}}}))
    elif left == "an unfinished run":
        shutil.move(out, tmp_path / "checkpoint-2")
        shutil.move(tmp_path / "checkpoint-2", out / "checkpoint-2")
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    run, given = {"verifier": (verifier, "--checkpoint"), "merge": (merge, "--adapter")}[command]
    with pytest.raises(SystemExit) as stop:
        run.main([given, str(tmp_path / "policy"), "--output_dir", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{out} holds {left}; give another --output_dir" in error
    assert before == {path: path.read_bytes() for path in out.rglob("*.safetensors")} != {}


def test_a_verifier_continues_its_own_run_only(tmp_path):
    settings, run = tmp_path / "rollouts.settings.json", tmp_path / "run.json"
    (tmp_path / "config.json").write_text("{}")
    assert not is_verifier_folder(tmp_path)
    settings.write_text("{}")
    assert is_verifier_folder(tmp_path)
    run.write_text(json.dumps({"configs": {"model": {}, "ppo": {}}}))
    assert not is_verifier_folder(tmp_path)
    run.write_text(json.dumps({"configs": {"source": {}, "data": {}, "verifier": {}}}))
    assert is_verifier_folder(tmp_path)


# ---- checks before any data is read ----


def test_an_absent_package_is_named_with_its_remedy(args, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    plain = SimpleNamespace(report_to="none")
    check_packages(plain)
    for field, package in preflight.PACKAGES.items():
        with pytest.raises(ValueError, match=f"{field}=True needs the package {package}"):
            check_packages(SimpleNamespace(report_to="none", **{field: True}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "-1"], "seed=-1 must lie between 0 and 2**32 - 1"),
    ],
)
def test_an_option_that_the_trainer_refuses_is_refused_before_data_is_read(
    tmp_path, monkeypatch, capsys, options, said
):
    monkeypatch.setattr(sft, "_prepare", lambda *_: pytest.fail("data was read"))
    with pytest.raises(SystemExit) as stop:
        sft.main(["--config", "configs/nano/sft.yaml", "--output_dir", str(tmp_path), *options])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said in error and "\n" not in error


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (sft, "--eval_strategy steps"),
        (sft, "--save_strategy best --metric_for_best_model loss"),
        (sft, "--load_best_model_at_end true --save_strategy no"),
        (rft, "--eval_on_start true"),
        (ppo, "--eval_strategy steps"),
        (ppo, "--load_best_model_at_end true"),
    ],
)
def test_options_that_need_an_evaluation_set_are_refused_before_data_is_read(
    tmp_path, monkeypatch, capsys, command, options
):
    monkeypatch.setattr(command, "training_problems", lambda *_: pytest.fail("data was read"))
    folders = ["--model", str(tmp_path / "sft"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        command.main([*folders, *options.split()])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in error
    assert options.split()[0].strip("-") in error and "needs an evaluation set" in error


def test_a_tracker_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"report_to=wandbb cannot be used: wandbb is not supp"):
        check_packages(SimpleNamespace(report_to=["wandbb"]))


def test_the_space_for_the_final_save_is_checked(tmp_path):
    check_writable(tmp_path / "a" / "b", 1)
    with pytest.raises(OSError, match=r"GB free, and the trained model needs 1000000000.00 GB"):
        check_writable(tmp_path / "a", 10**18)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; give another folder"):
        check_writable(tmp_path / "file" / "out", 1)


def test_model_and_tokenizer_are_checked_first(tmp_path, args, tiny_policy, tokenizer, monkeypatch):
    save_policy(tiny_policy, tokenizer, tmp_path / "model")
    config = ModelConfig(model=str(tmp_path / "model"))
    stored = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert check_model(config) >= stored
    (tmp_path / "model" / "tokenizer.json").write_text("no JSON")
    with pytest.raises(ValueError, match=r"the tokenizer cannot be loaded|tokenizer.json"):
        check_start(config, args, StageConfig(dry_run=True))
    monkeypatch.setattr(sft, "training_problems", lambda *_: pytest.fail("data was read"))
    with pytest.raises(FileNotFoundError, match="no/such/model does not exist"):
        sft.run(
            ModelConfig(model="no/such/model"),
            sft.DataConfig(),
            args,
            StageConfig(dry_run=True),
        )


# ---- the same command again ----


def test_the_same_command_continues_after_ctrl_c_and_is_refused_when_finished(
    tmp_path, monkeypatch, capsys
):
    threads = torch.get_num_threads()
    (tmp_path / "sft.yaml").write_text(SFT.replace("save_steps: 1", "save_steps: 100"))

    def command(name: str, *more: str) -> list[str]:
        folder = str(tmp_path / name)
        return ["--config", str(tmp_path / "sft.yaml"), "--output_dir", folder, *more]

    sft.main(command("unbroken"))
    with monkeypatch.context() as patch:
        patch.setattr(sft, "push_callbacks", lambda *_: [InterruptAt(0)])
        with pytest.raises(SystemExit) as stopped:
            sft.main(command("broken"))
    assert stopped.value.code == 130
    assert (tmp_path / "broken" / "checkpoint-1").is_dir()
    assert "the same command continues from it" in capsys.readouterr().out
    sft.main(command("broken"))
    assert "broken holds an unfinished run, which is resumed" in capsys.readouterr().out
    one, other = (load_policy(tmp_path / name)[0] for name in ("unbroken", "broken"))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert not (tmp_path / "broken" / "README.md").exists()

    save = sft.save_final_policy
    with monkeypatch.context() as patch:  # after the last step, where there is no checkpoint
        patch.setattr(
            sft, "save_final_policy", lambda *a: (os.kill(os.getpid(), signal.SIGTERM), save(*a))
        )
        with pytest.raises(SystemExit) as stopped:
            sft.main(command("late"))
    assert stopped.value.code == 143
    assert (tmp_path / "late" / "run.json").is_file()
    load_policy(tmp_path / "late")

    # A shell starts its background jobs with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:  # before the first step
        patch.setattr(sft, "energy_of", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(SystemExit) as stopped:
            sft.main(command("early"))
    signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130
    assert not list((tmp_path / "early").glob("*.safetensors"))

    before = json.loads((tmp_path / "broken" / "run.json").read_text())
    with pytest.raises(SystemExit) as refused:
        sft.main(command("broken", "--seed", "1"))
    assert refused.value.code == 2
    assert "broken holds a finished run; give another --output_dir" in capsys.readouterr().err
    assert json.loads((tmp_path / "broken" / "run.json").read_text()) == before

    shutil.copytree(tmp_path / "broken" / "checkpoint-1", tmp_path / "broken" / "checkpoint-9")
    sft.main(command("broken", "--seed", "1", "--overwrite_output_dir", "true"))
    assert not list((tmp_path / "broken").glob("checkpoint-*[19]"))
    torch.set_num_threads(threads)
