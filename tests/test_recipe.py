"""A recipe: which commands it runs, which it skips, where it resumes."""

import importlib
import json
import os
import time
from pathlib import Path

import pytest

from eval.compare import parse_folders
from pipeline import config_files
from stages import recipe, task_runner
from stages.recipe import RecipeConfig, all_tasks
from stages.recipe_variants import VARIANTS

SFT = """
model: nano
nano_hidden_size: 16
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 16
nano_vocab_size: 300
shares: wording=1
size: 24
per_device_train_batch_size: 8
max_length: 256
save_strategy: "no"
"""
PPO = """
shares: wording=1
size: 8
num_rollouts: 1
questions_per_rollout: 2
completions_per_question: 2
num_minibatches: 1
ppo_epochs: 1
max_completion_length: 8
"""


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """A folder of configurations for a model of one layer, below the current folder."""
    folder = tmp_path / "configs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "sft.yaml").write_text(SFT)
    (folder / "sft_direct.yaml").write_text(SFT + "think: false\n")
    (folder / "ppo.yaml").write_text(PPO)
    monkeypatch.chdir(tmp_path)
    return folder


class Ended:
    """A process that has ended."""

    def __init__(self, code: int):
        self.code = code

    def poll(self) -> int:
        return self.code

    wait = terminate = poll


class Commands:
    """Replaces start_module: writes the files of each command, or fails where a test says so."""

    def __init__(self):
        self.ran: list[str] = []
        self.fail_at, self.fail_late_at, self.interrupt_at, self.code = "", "", "", 1

    def __call__(self, arguments: tuple[str, ...], **options: object) -> Ended:
        return Ended(self.run(arguments))

    def run(self, arguments: tuple[str, ...]) -> int:
        module, flags = arguments[0], dict(zip(arguments[1::2], arguments[2::2], strict=True))
        folder = Path(flags.get("--output_dir") or flags["--output"])
        name = folder.as_posix().removeprefix("runs/tiny/")
        self.ran.append(name)
        if name == self.fail_at:
            return self.code
        if module in ("eval.compare", "eval.report_page.page"):
            folder.write_text("the table\n")
        elif module == "eval.run":
            suites = flags["--suite"].split(",")
            for suite in suites if len(suites) > 1 else [""]:
                (folder / suite).mkdir(parents=True, exist_ok=True)
                (folder / suite / "records.jsonl").touch()
                if name == self.interrupt_at:
                    raise KeyboardInterrupt
                (folder / suite / "metrics.json").touch()
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").touch()
        return self.code if name == self.fail_late_at else 0


@pytest.fixture
def commands(configs, monkeypatch) -> Commands:
    fake = Commands()
    monkeypatch.setattr(task_runner, "start_module", fake)
    return fake


def _run(*arguments: str) -> None:
    recipe.main(["--config_dir", "configs/tiny", *arguments])


def _ran(commands: Commands, *arguments: str) -> list[str]:
    """What another call runs."""
    commands.ran.clear()
    _run(*arguments)
    return commands.ran


EVALUATIONS = ["eval/sft/greedy", "eval/sft/vote"]


def test_the_commands_run_in_order(commands):
    assert _ran(commands) == [
        *("base", "eval/base/greedy", "sft_direct", "eval/sft_direct/greedy"),
        *("sft", "eval/sft/greedy", "eval/sft/vote"),
        *("ppo", "eval/ppo/greedy", "eval/ppo/vote", "report.md", "report.html"),
    ]


def test_the_pretrained_model_is_evaluated_plainly_and_with_examples(configs, commands):
    (configs / "sft.yaml").write_text(SFT.replace("model: nano", "model: user/base"))
    plain = ("--plain", "true", "--plain_few_shot", "2", "--untrained", "false")
    assert _ran(commands, *plain)[-4:-2] == ["eval/raw/greedy", "eval/raw_few_shot/greedy"]
    recipe_config = RecipeConfig(config_dir="configs/tiny", plain=True, plain_few_shot=2)
    raw, examples, report = (task.arguments for task in all_tasks(recipe_config)[-4:-1])
    assert raw[:3] == ("eval.run", "--checkpoint", "user/base")
    assert raw[raw.index("--max_sample_tokens") + 1] == "128"
    assert "--few_shot" not in raw
    assert examples[examples.index("--few_shot") + 1] == "2"
    assert report[2].startswith("raw=runs/tiny/eval/raw,raw few-shot=runs/tiny/eval/raw_few_shot,")


def test_a_training_is_a_command_of_its_own(configs):
    tasks = all_tasks(RecipeConfig(config_dir="configs/tiny", seed=7))
    trainings = {t.outputs[0].parent.name: t.command for t in tasks if t.config}
    sft, ppo = trainings["sft"], trainings["ppo"]
    assert sft == (
        "python -m stages.sft --config configs/tiny/sft.yaml --output_dir runs/tiny/sft --seed 7"
    )
    assert ppo == (
        "python -m stages.ppo --config configs/tiny/ppo.yaml --output_dir runs/tiny/ppo --seed 7 "
        "--model runs/tiny/sft"
    )


def test_the_base_model_is_the_start_of_sft_without_a_training_step(configs):
    base, *_, sft = (
        task for task in all_tasks(RecipeConfig(config_dir="configs/tiny"))
        if task.config and task.config.name == "sft.yaml"
    )  # fmt: skip
    assert "--num_train_epochs 0" in base.command
    assert base.command.replace("tiny/base", "tiny/sft").replace(" --num_train_epochs 0", "") == (
        sft.command
    )


def test_a_nano_without_training_is_measured_on_a_few_problems_with_short_answers(configs):
    tasks = all_tasks(RecipeConfig(config_dir="configs/tiny"))
    evaluations = {t.resumes.parent.name: t.command for t in tasks if "--suite" in t.command}
    assert "--limit 60 --max_sample_tokens 64" in evaluations["base"]
    assert "--limit" not in evaluations["sft"] and "_tokens 256" in evaluations["sft"]
    (configs / "sft.yaml").write_text(SFT.replace("model: nano", "model: user/name"))
    base = all_tasks(RecipeConfig(config_dir="configs/tiny"))[1]
    assert "--limit" not in base.command and "_tokens 256" in base.command


def test_a_question_is_answered_by_tree_search_and_shown_on_the_page(configs):
    tasks = all_tasks(RecipeConfig(config_dir="configs/tiny", question="What is 2 + 3?"))
    search, _, page = tasks[-3:]
    assert "--question 'What is 2 + 3?' --strategy mcts" in search.command
    assert search.outputs == (Path("runs/tiny/trees/tree.json"),)
    assert page.command.endswith("--trees runs/tiny/trees")


def test_only_the_model_trained_without_thoughts_is_evaluated_without_them(configs):
    asked = [
        p for p in all_tasks(RecipeConfig(config_dir="configs/tiny")) if "--suite" in p.command
    ]
    without = [p.resumes.parent.name for p in asked if "--think false" in p.command]
    assert without == ["sft_direct"]
    assert len(asked) == 6


def test_every_training_and_evaluation_gets_the_data_root(configs):
    *tasks, report, page = all_tasks(
        RecipeConfig(config_dir="configs/tiny", data_root="some where")
    )
    assert all(task.command.endswith(" --data_root 'some where'") for task in tasks)
    assert "--data_root" not in report.command + page.command


def test_with_several_jobs_each_suite_is_a_task_whose_folder_the_report_reads(configs):
    plain = {"config_dir": str(configs), "output_dir": "out", "suites": "nano, rows/own.jsonl"}
    together, apart = (all_tasks(RecipeConfig(**plain, jobs=jobs)) for jobs in (1, 2))
    folder = Path("out/eval/sft/greedy")
    files = (folder / "nano/metrics.json", folder / "rows_own.jsonl/metrics.json")
    assert files in [task.outputs for task in together]
    split = [task for task in apart if task.outputs in [(file,) for file in files]]
    assert [task.arguments[3:7] for task in split] == [
        ("--suite", "nano", "--output_dir", str(folder / "nano")),
        ("--suite", "rows/own.jsonl", "--output_dir", str(folder / "rows_own.jsonl")),
    ]
    assert together[-1] == apart[-1]


def test_ppo_starts_from_the_mixed_sft_where_its_configuration_says_so(configs, commands):
    (configs / "sft_mixed.yaml").write_text(SFT + "direct_share: 0.6\n")
    recipe.main(["--config_dir", str(configs)])
    assert "sft_mixed" not in commands.ran  # nothing starts from it
    (configs / "ppo.yaml").write_text("model: runs/tiny/sft_mixed\n" + PPO)
    made = RecipeConfig(config_dir=str(configs), output_dir="runs/other")
    by_folder = {Path(t.resumes).name: t for t in all_tasks(made) if t.config}
    assert list(by_folder) == ["base", "sft_direct", "sft", "sft_mixed", "ppo"]
    starts = {name: t.inputs[0].parent.name for name, t in by_folder.items() if t.inputs}
    assert starts == {"sft_mixed": "sft", "ppo": "sft_mixed"}


def test_the_names_of_all_variants_can_be_read_by_the_report(configs):
    names = [variant.name for variant in VARIANTS]
    runs = ",".join(f"{name}=runs/{i}" for i, name in enumerate(names))
    assert list(parse_folders("runs", runs)) == names


def test_a_folder_without_a_direct_configuration_has_three_variants(configs, commands):
    (configs / "sft_direct.yaml").unlink()
    assert not [name for name in _ran(commands) if "direct" in name]


def test_the_untrained_model_is_left_out_on_request(commands):
    ran = _ran(commands, "--untrained", "false")
    assert ran[0] == "sft_direct" and not [name for name in ran if "base" in name]


def test_nothing_is_answered_by_vote_without_a_vote_suite(commands):
    assert not [name for name in _ran(commands, "--vote_suites", "") if "vote" in name]


def test_a_second_call_runs_only_the_report_again(commands, capsys):
    _run()
    assert _ran(commands) == ["report.md", "report.html"]
    assert capsys.readouterr().out.count("finished before") == 10


def test_a_changed_configuration_reruns_only_what_depends_on_it(configs, commands):
    _run()
    (configs / "ppo.yaml").write_text(PPO + "kl_coef: 0.1\n")
    assert _ran(commands) == ["ppo", "eval/ppo/greedy", "eval/ppo/vote", "report.md", "report.html"]
    (configs / "sft.yaml").write_text(SFT + "weight_decay: 0.1\n")
    again = _ran(commands)
    assert "ppo" in again and "eval/ppo/vote" in again  # trained from the new SFT
    assert "sft_direct" not in again


def test_changed_data_of_the_user_s_own_reruns_what_reads_them(configs, commands):
    (configs / "rows.jsonl").write_text("{}\n")
    Path("test.jsonl").write_text("{}\n")
    (configs / "ppo.yaml").write_text(f"dataset: {configs / 'rows.jsonl'}=1,nano=2\n{PPO}")
    suites = ("--suites", "test.jsonl", "--vote_suites", "")
    _run(*suites)
    later = time.time() + 10
    os.utime(configs / "rows.jsonl", (later, later))
    assert [n for n in _ran(commands, *suites) if "report" not in n] == ["ppo", "eval/ppo/greedy"]
    os.utime("test.jsonl", (later, later))
    names = ("base", "sft_direct", "sft", "ppo")
    evaluated = [n for n in _ran(commands, *suites) if n.startswith("eval/")]
    assert evaluated == [f"eval/{name}/greedy" for name in names]


def test_a_text_that_is_no_path_names_no_file(tmp_path):
    (tmp_path / "a.jsonl").touch()
    assert recipe.files_in(["x" * 300, "~nobody here is", "gsm8k=1", 3, None, "\0"]) == []
    assert recipe.files_in([f"gsm8k=1,{tmp_path / 'a.jsonl'}=2"]) == [tmp_path / "a.jsonl"]


def test_a_comment_in_a_configuration_changes_nothing(configs, commands):
    _run()
    (configs / "sft.yaml").write_text("# tiny\n" + SFT)
    assert _ran(commands) == ["report.md", "report.html"]


def test_other_evaluation_settings_rerun_no_training(commands):
    _run()
    assert _ran(commands, "--limit", "5") == [
        *("eval/base/greedy", "eval/sft_direct/greedy", *EVALUATIONS),
        *("eval/ppo/greedy", "eval/ppo/vote", "report.md", "report.html"),
    ]


def test_a_checkpoint_written_by_another_command_is_trained_again(commands):
    _run()
    later = Path("runs/tiny/sft/run.json")
    os.utime(later, (later.stat().st_atime + 60, later.stat().st_mtime + 60))
    assert _ran(commands)[:3] == ["sft", *EVALUATIONS]


@pytest.mark.parametrize(("code", "ends_with"), [(2, 2), (-9, 137)])
def test_a_failure_ends_the_recipe_with_its_exit_code(commands, capsys, code, ends_with):
    commands.fail_at, commands.code = "sft", code
    with pytest.raises(SystemExit) as stopped:
        _run()
    assert stopped.value.code == ends_with
    assert commands.ran[-1] == "sft"
    assert "[5/12]" in capsys.readouterr().err
    commands.fail_at = ""
    assert _ran(commands)[0] == "sft"


def test_a_failed_task_with_an_older_result_runs_again(configs, commands):
    _run()
    (configs / "ppo.yaml").write_text(PPO + "kl_coef: 0.1\n")
    commands.fail_at = "ppo"
    with pytest.raises(SystemExit):
        _run()
    commands.fail_at = ""
    assert _ran(commands)[0] == "ppo"


def test_a_training_that_was_stopped_after_it_wrote_its_result_is_not_run_again(commands):
    commands.fail_late_at, commands.code = "sft", 143
    with pytest.raises(SystemExit) as stopped:
        _run()
    assert stopped.value.code == 143
    commands.fail_late_at = ""
    assert _ran(commands)[0] != "sft"


def test_an_interrupted_evaluation_resumes_in_its_folder(commands):
    commands.interrupt_at = "eval/sft/greedy"
    with pytest.raises(SystemExit) as stopped:
        _run("--suites", "nano,nano_hard")
    assert stopped.value.code == 130
    records = Path("runs/tiny/eval/sft/greedy/nano/records.jsonl")
    records.write_text("three rows")
    commands.interrupt_at = ""
    assert _ran(commands, "--suites", "nano,nano_hard")[0] == "eval/sft/greedy"
    assert records.read_text() == "three rows"


def test_an_evaluation_with_other_settings_starts_in_an_empty_folder(commands):
    _run()
    records = Path("runs/tiny/eval/sft/vote/records.jsonl")
    records.write_text("three rows")
    _run("--limit", "5")
    assert records.read_text() == ""


def test_figures_of_an_earlier_call_are_not_reported(commands):
    _run("--suites", "nano,nano_hard")
    assert _ran(commands, "--suites", "nano", "--vote_suites", "")[-1] == "report.html"
    assert [p.parent.name for p in Path("runs/tiny/eval/sft/greedy").rglob("metrics.json")] == [
        "greedy"
    ]
    recipe = all_tasks(RecipeConfig(config_dir="configs/tiny", vote_suites=""))
    assert "SFT=runs/tiny/eval/sft/greedy," in recipe[-1].command


def test_a_folder_without_a_cache_entry_is_not_emptied(commands):
    mine = Path("runs/tiny/eval/sft/vote/notes.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    _run()
    assert mine.read_text() == "mine"


def test_a_cache_under_its_old_name_is_read(commands):
    _run()
    new, old = Path("runs/tiny/recipe.json"), Path("runs/tiny/story.json")
    entries = json.loads(new.read_text())
    renamed = {k: {"recipe": v.pop("settings"), **v} for k, v in entries.items()}
    old.write_text(json.dumps(renamed))
    new.unlink()
    assert _ran(commands) == ["report.md", "report.html"]
    assert new.is_file()


def test_without_a_folder_the_recipe_is_nano_of_the_package(configs):
    given = RecipeConfig()  # the current folder has other configurations
    assert given.configs.samefile(config_files.CONFIGS / "nano")
    assert given.folder == Path("runs/nano")


def test_mistakes_are_reported_before_anything_runs(commands, capsys):
    for arguments, message in [
        (["--votes", "1"], "votes=1 must be at least 2"),
        (["--suites", ""], "--suites is missing"),
        (["--config_dir", "configs"], "config_dir=configs has no sft.yaml"),
    ]:
        with pytest.raises(SystemExit):
            _run(*arguments)
        assert message in capsys.readouterr().err
    assert not commands.ran


def test_the_whole_recipe_on_a_model_of_one_layer(configs, monkeypatch, capsys):
    def in_this_process(arguments: tuple[str, ...], **options: object) -> Ended:
        importlib.import_module(arguments[0]).main(list(arguments[1:]))
        return Ended(0)

    monkeypatch.setattr(task_runner, "start_module", in_this_process)
    _run("--suites", "nano", "--limit", "6", "--votes", "2", "--max_completion_tokens", "12")
    report = Path("runs/tiny/report.md").read_text()
    for line in ("| variant | nano greedy | nano consensus@2 |", "| SFT + PPO | ", "| base | "):
        assert line in report
    assert "base to no-CoT SFT" in report and "Learning curve" in report
    assert report.count("python -m ") == 12
    assert Path("runs/tiny/report.png").stat().st_size > 1000
    metrics = json.loads(Path("runs/tiny/eval/ppo/vote/metrics.json").read_text())
    assert (metrics["n"], metrics["options"]["n"]) == (6, 2)
    assert "SFT + PPO" in capsys.readouterr().out
