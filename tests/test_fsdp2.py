"""FSDP2 in two processes: the rollouts of one process, and checkpoints in shards."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from pipeline.hub import push
from pipeline.hub.push import HubPush
from pipeline.model import attach_value_head, load_policy, save_policy
from pipeline.model.atomic import MANIFEST, DamagedCheckpointError, check_manifest, checkpoints
from pipeline.model.shards import (
    MODEL_SHARDS,
    own_shards,
    read_shards,
    stored_shapes,
    write_shards,
)
from pipeline.training import trainer_shell
from pipeline.training.checkpointing import find_resume_checkpoint
from pipeline.training.sharded_state import (
    OPTIMIZER_SHARDS,
    load_optimizer,
    load_weights,
    own_files,
)
from stages import merge
from stages.common import save_final_policy
from tests.forked import run_ranks
from tests.sharded_ranks import (
    PROCESSES,
    RUNS,
    Batch,
    by_sequence,
    make_sft_trainer,
    make_trainer,
    one_process,
    train,
    train_sft,
)

TOLERANCE = 1e-5
KEYS = ("prompt_ids", "completion_ids", "old_logprobs", "old_values", "advantages")


def in_ranks(function: Callable[[], object], processes: int = PROCESSES) -> None:
    for done in run_ranks(function, processes=processes):
        assert done.returncode == 0, done.stderr[-4000:]


def kill(folder: Path, outs: Sequence[str], rollouts: int, *, after: int) -> None:
    """Train several runs, of which the last one is killed after some rollouts."""
    for done in run_ranks(lambda: train(folder, outs, rollouts, killed_after=after)):
        assert done.returncode == -9, done.stderr[-4000:]
    assert checkpoints(folder / outs[-1])[0].name == f"checkpoint-{after}"


def batches_of(folder: Path, out: str, processes: int) -> list[list[Batch]]:
    """The batches of every rollout, one for each process."""
    ranks = [torch.load(folder / f"{out}-{rank}.pt") for rank in range(processes)]
    return [list(batches) for batches in zip(*ranks, strict=True)]


def assert_same_rollouts(found: list[list[Batch]], expected: list[Batch]) -> None:
    """The batches of the processes together are those of one process."""
    assert len(found) == len(expected) > 0
    for batches, whole in zip(found, expected, strict=True):
        for key in KEYS:
            rows = [row for batch in batches for row in by_sequence(batch, key)]
            wanted = by_sequence(whole, key)
            assert len(rows) == len(wanted) == 8
            for one, other in zip(rows, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def assert_same_policy(one: Path, other: Path, *, tolerance: float = TOLERANCE) -> None:
    weights, others = (load_policy(folder)[0].state_dict() for folder in (one, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=tolerance, rtol=tolerance)


def whole_tensors(shards: Path) -> dict[str, torch.Tensor]:
    tensors = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in stored_shapes(shards).items()
    }
    read_shards(tensors, shards)
    return tensors


def longest(batch: Batch) -> int:
    return int(batch["completion_mask"].sum(dim=1).max())


# ---- two rollouts, killed before the second ----

ROLLOUTS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory, _tiny_policy, tokenizer) -> Path:
    """Runs in two processes: `full-whole`, `full-resumed` from its first checkpoint, and `lora`,
    which was killed after its first rollout and resumed. `killed` has both first checkpoints."""
    folder = tmp_path_factory.mktemp("fsdp2")
    policy = copy.deepcopy(_tiny_policy)
    del policy.model.layers[1:]  # one layer takes less time
    policy.config.num_hidden_layers = 1
    policy.config.layer_types = policy.config.layer_types[:1]
    save_policy(policy, tokenizer, folder / "sft")
    load_policy(folder / "sft")  # what the library prepares once is not prepared in every process
    kill(folder, ["full-whole", "lora"], ROLLOUTS, after=1)
    shutil.copytree(folder / "lora", folder / "killed/lora")
    for out in ("full-resumed", "killed/full"):
        shutil.copytree(folder / "full-whole/checkpoint-1", folder / out / "checkpoint-1")
    in_ranks(lambda: train(folder, ["full-resumed", "lora"], ROLLOUTS))
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, list[Batch]]:
    """The rollouts of one process; its policies are in FULL-one-final and LORA-one-final."""
    return {name: one_process(folder, name, ROLLOUTS, f"{name}-one") for name in RUNS}


def test_two_processes_sample_and_end_as_one_process(folder, expected):
    found = batches_of(folder, "full-whole", PROCESSES)
    assert_same_rollouts(found, expected["full"])
    assert any(longest(one) != longest(other) for one, other in found)  # of decodings
    assert_same_policy(folder / "full-whole-final", folder / "full-one-final")


def test_a_run_resumed_on_two_processes_ends_with_the_same_bits(folder):
    assert_same_policy(folder / "full-whole-final", folder / "full-resumed-final", tolerance=0)
    for shards in (MODEL_SHARDS, OPTIMIZER_SHARDS):
        ours, theirs = (
            whole_tensors(folder / out / "checkpoint-2" / shards)
            for out in ("full-whole", "full-resumed")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_killed_run_with_adapters_goes_on_and_ends_as_one_process(folder, expected):
    assert_same_rollouts(batches_of(folder, "lora", PROCESSES), expected["lora"][1:])
    assert_same_policy(folder / "lora-final", folder / "lora-one-final")
    assert not (folder / "lora" / ".saving").exists()


@pytest.mark.parametrize("name", RUNS)
def test_one_process_without_fsdp2_goes_on_from_the_shards_of_two(folder, expected, name):
    out, saved = f"{name}-alone", folder / "killed" / name / "checkpoint-1"
    assert_same_rollouts(
        [[batch] for batch in one_process(folder, name, ROLLOUTS, out, saved)], expected[name][1:]
    )
    assert_same_policy(folder / f"{out}-final", folder / f"{name}-one-final")


@pytest.mark.slow
def test_a_resume_without_the_state_of_the_optimizer_is_found_out(folder, expected, monkeypatch):
    monkeypatch.setattr(trainer_shell, "load_optimizer", lambda *args: None)
    one_process(folder, "lora", ROLLOUTS, "lora-new", folder / "killed/lora/checkpoint-1")
    with pytest.raises(AssertionError, match="not close"):
        assert_same_policy(folder / "lora-new-final", folder / "lora-one-final")


# ---- the files of a checkpoint ----


def test_every_process_writes_its_part_and_none_gathers_the_weights(folder):
    for saved in (folder / "full-whole/checkpoint-2", folder / "lora/checkpoint-2"):
        assert not list(saved.glob("*.safetensors"))
        for shards in (MODEL_SHARDS, OPTIMIZER_SHARDS):
            sizes = [path.stat().st_size for path in sorted((saved / shards).iterdir())]
            assert len(sizes) == PROCESSES
            assert max(sizes) < 1.5 * min(sizes)
    adapters, weights = (
        stored_shapes(folder / out / "checkpoint-2" / MODEL_SHARDS)
        for out in ("lora", "full-whole")
    )
    assert not [name for name in adapters if "base_layer" in name or "layernorm" in name]
    assert "value_head.last.weight" in adapters.keys() & weights.keys()
    assert any("trainable_tokens" in name for name in adapters)


def test_every_process_hashes_its_own_files(folder):
    """The first process takes the hashes of the others as they are."""
    saved = folder / "full-whole" / "checkpoint-2"
    names = [path.relative_to(saved).as_posix() for path in own_files(saved, 1)]
    assert len(names) == 2
    content = json.loads((saved / MANIFEST).read_text())["files"]
    assert content.keys() >= {*names}
    assert check_manifest(saved)["processes"] == PROCESSES


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("THINKHEAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["full-whole", "lora"])
def test_a_sharded_checkpoint_loads_as_the_policy_of_its_step(folder, cache, name):
    assert_same_policy(folder / name / "checkpoint-2", folder / f"{name}-final", tolerance=0)
    assert len(list(cache.glob("sharded-*"))) == 1  # converted once, read twice
    load_policy(folder / name / "checkpoint-2")
    assert len(list(cache.glob("sharded-*"))) == 1


@pytest.mark.parametrize("name", ["full-whole", "lora"])
def test_stages_merge_writes_a_sharded_checkpoint_as_a_plain_folder(folder, cache, tmp_path, name):
    saved = str(folder / name / "checkpoint-2")
    merge.main(["--adapter", saved, "--output_dir", str(tmp_path / "plain")])
    assert (tmp_path / "plain" / "model.safetensors").is_file()
    assert_same_policy(tmp_path / "plain", folder / f"{name}-final", tolerance=0)


def test_the_best_checkpoint_is_loaded_from_its_shards(folder):
    trainer = make_trainer(folder, "full", 1, "best")
    trainer.state.best_model_checkpoint = str(folder / "full-whole" / "checkpoint-2")
    trainer._load_best_model()
    weights = load_policy(folder / "full-whole-final")[0].state_dict()
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_a_pushed_checkpoint_is_gathered(folder, monkeypatch):
    pushed = []
    monkeypatch.setattr(HubPush, "_push", lambda self, aside, state: pushed.append(aside.name))
    monkeypatch.setattr(
        push, "write_plain", lambda saved, aside: pushed.append((saved.name, aside.is_dir()))
    )
    hub = HubPush(push.Target("user/name"), card=lambda *args: "")
    hub.add(folder / "lora" / "checkpoint-2", "after 2 of 2 steps")
    while hub._thread is not None:
        hub._thread.join(10)
    assert pushed[0] == ("checkpoint-2", True) and len(pushed) == 2 and not hub.failed


# ---- corrupt shards ----


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {"truncated": truncate, "missing": Path.unlink, "a flipped bit": flip_a_bit}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("shards", [MODEL_SHARDS, OPTIMIZER_SHARDS])
def test_a_checkpoint_with_a_damaged_shard_is_skipped(folder, tmp_path, cache, shards, damage):
    run = tmp_path / "run"
    shutil.copytree(folder / "killed/lora", run)
    shutil.copytree(folder / "lora/checkpoint-2", run / "checkpoint-2")
    damaged = run / "checkpoint-2" / shards / "shard-00002-model-00001-of-00001.safetensors"
    DAMAGES[damage](damaged)
    facts = check_manifest(run / "checkpoint-1")
    found, error, said = find_resume_checkpoint("last", run, facts)
    assert (found, error) == (str(run / "checkpoint-1"), None)
    assert said[0].startswith(f"skipped: {run / 'checkpoint-2'} is damaged: {shards}/shard-00002")
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        load_policy(run / "checkpoint-2")
    assert not cache.exists()


def test_weights_of_another_model_are_refused_by_name(folder, make_model):
    saved = folder / "full-whole" / "checkpoint-2"
    with pytest.raises(ValueError, match=r"resume with the model it was saved with"):
        load_weights(make_model("qwen3", vocab_size=40), saved)


def test_the_state_of_another_optimizer_is_refused(folder, tiny_policy):
    saved = folder / "full-whole" / "checkpoint-2"
    with pytest.raises(ValueError, match="3 parameter groups instead of 1"):
        load_optimizer(tiny_policy, torch.optim.AdamW(tiny_policy.parameters()), saved)


def test_a_checkpoint_without_shards_is_refused_under_fsdp2(folder, monkeypatch):
    trainer = make_trainer(folder, "full", 1, "refused")
    monkeypatch.setattr(type(trainer), "is_sharded", True)
    with pytest.raises(ValueError, match="was saved without FSDP2"):
        trainer._load_from_checkpoint(str(folder / "sft"))


def test_tensors_are_divided_among_files_of_a_bounded_size(tmp_path, monkeypatch):
    """A process holds a whole file in memory while it writes it."""
    monkeypatch.setattr("pipeline.model.shards.FILE_BYTES", 100)
    tensors = {f"{i}.weight": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    write_shards(tensors, tmp_path / "shards", processes=1)
    assert len(own_shards(tmp_path / "shards", 0)) == 3
    found = {name: torch.zeros(10) for name in tensors}
    read_shards(found, tmp_path / "shards")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


# ---- a signal in the middle of a rollout ----


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_signal_in_the_middle_of_a_rollout_saves_shards_and_the_run_goes_on(
    tmp_path, tiny_policy, tokenizer, name
):
    """Half of the rollout's updates are held back, in parts of the processes."""
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    options = {"num_minibatches": 4, "policy_steps_per_rollout": 1}
    in_ranks(lambda: train(tmp_path, [name], 1, **options))
    left = f"{name}-left"
    for done in run_ranks(lambda: train(tmp_path, [left], 1, signalled_at=2, **options)):
        assert done.returncode == 143, done.stderr[-4000:]
    saved = tmp_path / left / "checkpoint-2"
    assert {path.name for path in saved.glob("delayed-*")} == {
        f"delayed-{rank}.safetensors" for rank in range(PROCESSES)
    }
    with pytest.raises(ValueError, match="processes=2, and this run has processes=1"):
        one_process(tmp_path, name, 1, f"{name}-alone", saved, **options)
    in_ranks(lambda: train(tmp_path, [left], 1, **options))
    assert_same_policy(tmp_path / f"{name}-final", tmp_path / f"{left}-final", tolerance=0)


# ---- SFT ----


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_sft_of_a_model_with_an_lm_head_of_its_own_resumes(
    tmp_path, cache, make_model, tokenizer, name
):
    """Two processes end with the same bits, and one without FSDP2 with the same weights."""
    model = make_model("qwen3", vocab_size=len(tokenizer))
    save_policy(attach_value_head(model), tokenizer, tmp_path / "sft")
    in_ranks(lambda: train_sft(tmp_path, name))
    whole = tmp_path / f"{name}-final"
    assert_same_policy(whole, tmp_path / f"{name}-resumed-final", tolerance=0)
    assert_same_policy(whole, tmp_path / name / "checkpoint-4", tolerance=0)
    alone = make_sft_trainer(tmp_path, name, f"{name}-alone")
    alone.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-2"))
    save_final_policy(alone, tokenizer, tmp_path / f"{name}-alone-final")
    assert_same_policy(whole, tmp_path / f"{name}-alone-final")


# ---- five rollouts ----


@pytest.mark.slow
def test_five_rollouts_and_kills_leave_the_run_of_one_process(tmp_path, tiny_policy, tokenizer):
    """Killed after three rollouts, resumed on two processes, on one, and on one without FSDP2; and
    from one process on two."""
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    names = [f"{name}{end}" for name in RUNS for end in ("", "-sharded", "-again", "-whole")]
    expected = {name: one_process(tmp_path, name, 5, f"{name}-one") for name in RUNS}
    in_ranks(lambda: train(tmp_path, [f"{name}-whole" for name in RUNS], 5))
    for name in RUNS:
        assert_same_rollouts(batches_of(tmp_path, f"{name}-whole", 2), expected[name])
        kill(tmp_path, [name], 5, after=3)
        for copied in (f"{name}-sharded", f"{name}-again"):
            shutil.copytree(tmp_path / name, tmp_path / copied)
    in_ranks(lambda: train(tmp_path, list(RUNS), 5))
    in_ranks(lambda: train(tmp_path, [f"{name}-sharded" for name in RUNS], 5), processes=1)
    for name in RUNS:
        alone = one_process(tmp_path, name, 5, f"{name}-alone", tmp_path / name / "checkpoint-3")
        assert_same_rollouts([[batch] for batch in alone], expected[name][3:])
        assert_same_rollouts(batches_of(tmp_path, name, 2), expected[name][3:])
        assert_same_rollouts(batches_of(tmp_path, f"{name}-sharded", 1), expected[name][3:])
        # On two processes from the fourth checkpoint, which one process has written.
        for saved in checkpoints(tmp_path / f"{name}-again"):
            shutil.rmtree(saved)
        fourth = tmp_path / f"{name}-sharded" / "checkpoint-4"
        shutil.copytree(fourth, tmp_path / f"{name}-again" / "checkpoint-4")
    in_ranks(lambda: train(tmp_path, [f"{name}-again" for name in RUNS], 5))
    for name in RUNS:
        assert_same_rollouts(batches_of(tmp_path, f"{name}-again", 2), expected[name][4:])
    for out in [*names, *(f"{name}-alone" for name in RUNS)]:
        one = tmp_path / f"{out.partition('-')[0]}-one-final"
        assert_same_policy(tmp_path / f"{out}-final", one)
