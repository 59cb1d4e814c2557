"""Loading by user/name[@revision], adapters too, and what a stranger's checkpoint may not do."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from eval import run as eval_run
from pipeline.config import ModelConfig
from pipeline.model import (
    Verifier,
    add_reasoning_tokens,
    atomic,
    attach_verifier,
    has_value_head,
    is_adapted,
    load_adapters,
    load_policy,
    load_value_head,
    load_verifier,
    merge_adapters,
    save_policy,
    save_value_head,
    trust,
    values_of,
    verifier_of,
)
from pipeline.model.atomic import MANIFEST, write_manifest
from pipeline.search import NEED_VALUES
from stages import sft
from stages.common import load_model
from tests.hub_server import Repo

IDS_BT = torch.tensor([[5, 6, 7, 8]])
LOADERS = (
    load_policy,
    load_adapters,
    load_value_head,
    load_verifier,
    eval_run.load_checkpoint,
    lambda name: load_model(ModelConfig(model=name), value_head="optional"),
)


def put(hub, name: str, folder: Path, branch: str = "main") -> str:
    """The folder as somebody's repository; all files of it."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return hub.add(name, files, branch)


@pytest.fixture
def folder(tiny_policy, tokenizer, tmp_path) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def see(name: str | Path, **options) -> torch.Tensor:
    with torch.no_grad():
        return load_policy(name, **options)[0](IDS_BT).logits


# ---- by name ----


def test_a_revision_is_a_branch_or_a_commit(hub, folder, tiny_policy, tokenizer, tmp_path):
    old = put(hub, "user/name", folder)
    with torch.no_grad():
        tiny_policy.get_input_embeddings().weight.mul_(2)
    save_policy(tiny_policy, tokenizer, tmp_path / "newer")
    put(hub, "user/name", tmp_path / "newer", "main")
    put(hub, "user/name", folder, "v1")
    assert torch.equal(see("user/name"), see(tmp_path / "newer"))
    assert torch.equal(see("user/name@v1"), see(folder))
    assert torch.equal(see(f"user/name@{old}"), see(folder))
    assert torch.equal(see("user/name", revision="v1"), see(folder))


def test_a_name_with_two_revisions_is_refused():
    with pytest.raises(ValueError, match="names the revision v1, and revision=v2 another one"):
        load_policy("user/name@v1", revision="v2")
    with pytest.raises(ValueError, match="names another revision than model_revision=v2"):
        ModelConfig(model="user/name@v1", model_revision="v2")


def test_a_stage_takes_the_revision_out_of_the_name():
    # by the name alone TRL loads the reference model, with the revision beside it
    config = ModelConfig(model="user/name@v1")
    assert (config.model, config.model_revision) == ("user/name", "v1")


def test_a_model_of_the_hub_keeps_its_name(hub, folder):
    put(hub, "user/name", folder)
    model, _ = load_policy("user/name@main")
    assert model.name_or_path == "user/name"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user/nothing", "the Hub has no such model, or none that your token may read"),
        ("user/name@v9", "the model on the Hub has no revision of that name"),
        ("user/empty", "the repository of that name has no config.json"),
    ],
)
def test_every_loader_reports_a_missing_checkpoint_in_the_same_line(hub, folder, name, message):
    put(hub, "user/name", folder)
    hub.add("user/empty", {"README.md": b"# nothing"})
    for load in LOADERS:
        with pytest.raises(OSError, match=f"^{name} is no folder here, and {message}.*; check the"):
            load(name)


def test_a_private_repository_opens_with_its_token_only(hub, folder, monkeypatch):
    hub.repos["user/name"] = Repo(private=True)
    put(hub, "user/name", folder)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="none that your token may read"):
        load_policy("user/name")


def test_a_repository_without_value_head_says_what_cannot_be_used(hub, folder, tmp_path, capsys):
    (folder / "value_head.safetensors").unlink()
    put(hub, "user/plain", folder)
    arguments = ["--suite", "nano", "--limit", "1", "--max_completion_tokens", "4"]
    out = ["--output_dir", str(tmp_path / "eval")]
    eval_run.main(["--checkpoint", "user/plain", *arguments, *out])
    said = capsys.readouterr().out
    assert f"user/plain has no value head: {', '.join(NEED_VALUES)} are unavailable" in said
    with pytest.raises(ValueError, match=r"user/plain has no value_head.safetensors"):
        load_policy("user/plain")


def test_the_evaluation_takes_a_name_and_writes_it_down(hub, folder, tmp_path):
    put(hub, "user/name", folder)
    arguments = ["--suite", "nano", "--limit", "1", "--max_completion_tokens", "4"]
    out = ["--output_dir", str(tmp_path / "eval")]
    eval_run.main(["--checkpoint", "user/name@main", *arguments, *out])
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["checkpoint"] == "user/name@main"


# ---- adapters ----


@pytest.fixture
def adapters(make_model, make_tokenizer, tmp_path) -> tuple[Path, Path, torch.Tensor]:
    """(folder of the base, folder of the adapters, logits of both together)

    The base is as found on the Hub, without the reasoning tokens.
    """
    base, tokenizer = make_model("llama", vocab_size=259), make_tokenizer()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model, tokenizer = load_policy(tmp_path / "base", value_head="new")
    add_reasoning_tokens(model, tokenizer)
    rows = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    config = LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices={"embed_tokens": rows, "lm_head": rows},
        init_lora_weights=False,  # adapters that do something
    )
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    head = adapted.base_model.model.value_head
    torch.nn.init.constant_(head.last.bias, 0.5)
    save_value_head(head, tmp_path / "adapter")
    with torch.no_grad():
        logits = adapted.eval()(IDS_BT).logits
    return tmp_path / "base", tmp_path / "adapter", logits


def name_base(adapter: Path, base: str) -> None:
    about = json.loads((adapter / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = base
    (adapter / "adapter_config.json").write_text(json.dumps(about))


def test_adapters_load_as_their_base_with_the_adapters_added(adapters):
    base, adapter, logits = adapters
    model, tokenizer = load_policy(adapter)
    with torch.no_grad():
        output = model(IDS_BT)
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(see(base, value_head="new"), output.logits[..., :259], atol=1e-2)
    assert (values_of(output) == 0.5).all()
    assert tokenizer.convert_tokens_to_ids("<think>") >= 259
    assert not hasattr(model, "peft_config")


def test_published_adapters_load_from_the_hub_with_their_base(hub, adapters):
    base, adapter, logits = adapters
    put(hub, "user/base", base)
    name_base(adapter, "user/base")
    put(hub, "user/adapter", adapter)
    model, _ = load_policy("user/adapter@main")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS_BT).logits, logits, atol=1e-5, rtol=1e-5)
    assert has_value_head(model)


@pytest.mark.parametrize("load", [load_policy, load_adapters])
def test_adapters_whose_base_is_gone_name_it(adapters, load):
    _, adapter, _ = adapters
    name_base(adapter, "no/such/folder")
    with pytest.raises(ValueError, match="an adapter on the model no/such/folder, which is not"):
        load(adapter)


def test_adapters_of_the_hub_load_without_being_merged(hub, adapters):
    base, adapter, logits = adapters
    put(hub, "user/base", base)
    name_base(adapter, "user/base")
    put(hub, "user/adapter", adapter)
    model, _ = load_adapters("user/adapter")
    with torch.no_grad():
        output = model(IDS_BT)
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)
    assert is_adapted(model) and (values_of(output) == 0.5).all()


def test_merged_adapters_do_not_keep_the_verifier_of_their_base(adapters, tmp_path):
    # It was fitted to the values of the base model; the adapters have their own value head.
    base, adapter, _ = adapters
    model, tokenizer = load_policy(base, value_head="new")
    attach_verifier(model, Verifier())
    save_policy(model, tokenizer, base)
    assert verifier_of(load_policy(base)[0]) is not None
    assert verifier_of(merge_adapters(load_adapters(adapter)[0])) is None
    assert verifier_of(load_policy(adapter)[0]) is None


def test_adapters_on_adapters_are_refused(adapters):
    _, adapter, _ = adapters
    name_base(adapter, str(adapter))
    with pytest.raises(ValueError, match="an adapter too; merge that one first"):
        load_policy(adapter)


# ---- what a stranger's checkpoint may not do ----


class Bomb:
    """What a pickle can do to the one who loads it."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def _change_json(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def pickled_weights(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))


def pickled_arguments(folder: Path, canary: Path) -> None:
    (folder / "training_args.bin").write_bytes(pickle.dumps(Bomb(canary)))


def code_for_the_model(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    _change_json(folder / "config.json", model_type="evil", auto_map=names)


def code_for_the_tokenizer(folder: Path, canary: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    names = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    _change_json(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=names)


def code_for_generation(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(canary)!r}, 'w')\n")


def a_kernel_for_attention(folder: Path, canary: Path) -> None:
    _change_json(folder / "config.json", _attn_implementation_internal="evil/kernel")


def a_template_that_breaks_out(folder: Path, canary: Path) -> None:
    reach = "''.__class__.__mro__[1].__subclasses__()"
    (folder / "chat_template.jinja").write_text(
        "{% for c in " + reach + " %}{% if c.__name__ == 'Popen' %}"
        "{{ c(['touch', '" + str(canary) + "']) }}{% endif %}{% endfor %}"
    )


def a_template_that_never_ends(folder: Path, canary: Path) -> None:
    loop = "{% for i in range(99999) %}"
    (folder / "chat_template.jinja").write_text(loop * 4 + "x" + "{% endfor %}" * 4)


def a_value_head_of_any_size(folder: Path, canary: Path) -> None:
    shape = {"value_head": json.dumps({"hidden_size": 10**12, "hidden": None})}
    header = json.dumps({"__metadata__": shape}).encode()
    (folder / "value_head.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def a_header_of_any_size(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def a_shard_outside_of_the_folder(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    shards = {"weight_map": {"lm_head.weight": "../../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))


def an_archive_that_writes_outside(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr(f"../../../../../../../../{canary}", "x")


HARMLESS = (
    pickled_arguments,
    code_for_the_tokenizer,
    code_for_generation,
    a_template_that_breaks_out,
)
REFUSED = (
    pickled_weights,
    code_for_the_model,
    a_kernel_for_attention,
    a_template_that_never_ends,
    a_value_head_of_any_size,
    a_header_of_any_size,
    a_shard_outside_of_the_folder,
    an_archive_that_writes_outside,
)


@pytest.mark.parametrize("change", [*HARMLESS, *REFUSED], ids=lambda change: change.__name__)
def test_a_strangers_checkpoint_runs_nothing_and_writes_nothing(
    hub, folder, tmp_path, monkeypatch, change
):
    if change is a_template_that_never_ends:
        monkeypatch.setattr(trust, "TEMPLATE_SECONDS", 1)
    canary = tmp_path / "canary"
    change(folder, canary)
    put(hub, "stranger/model", folder)
    if change in REFUSED:
        with pytest.raises((ValueError, OSError)) as caught:
            load_policy("stranger/model")
        assert "\n" not in str(caught.value).strip()
    else:
        model, tokenizer = load_policy("stranger/model")
        model(IDS_BT)
        try:
            tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        except Exception as error:  # what the sandbox of Jinja says to it
            assert "unsafe" in str(error)
    assert not canary.exists()


def test_the_canary_of_these_tests_can_sing(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../../escape.json", "/escape.json", "a/../../escape.json"])
def test_a_repository_cannot_name_files_outside_of_the_cache(hub, folder, tmp_path, name):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("stranger/model", files | {name.replace("escape", "vocab"): b"{}"})
    before = {path for path in tmp_path.parent.rglob("*") if "vocab" in path.name}
    with contextlib.suppress(ValueError, OSError):
        load_policy("stranger/model")
    assert {path for path in tmp_path.parent.rglob("*") if "vocab" in path.name} == before


# ---- what a checkpoint to go on from, or a configuration, may not do ----

RESUMED = """
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 64
nano_vocab_size: 300
shares: wording=1
size: 8
max_steps: 2
save_steps: 1
per_device_train_batch_size: 4
disable_tqdm: true
"""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The folder of a run that was left after the first of two steps."""
    home = tmp_path_factory.mktemp("run")
    (home / "sft.yaml").write_text(RESUMED)
    threads = torch.get_num_threads()
    arguments = ["--config", f"{home}/sft.yaml", "--output_dir", f"{home}/out", "--max_steps", "1"]
    sft.main(arguments)
    torch.set_num_threads(threads)
    return home / "out"


def go_on(run: Path, config: str = RESUMED) -> str:
    """The error of the command that goes on from checkpoint-1; "" where it came to its end."""
    (run.parent / "sft.yaml").write_text(config)
    arguments = ["--config", f"{run.parent}/sft.yaml", "--output_dir", str(run)]
    arguments += ["--resume_from_checkpoint", f"{run}/checkpoint-1"]
    said, threads = io.StringIO(), torch.get_num_threads()
    try:
        with contextlib.redirect_stderr(said):
            sft.main(arguments)
    except SystemExit:
        return said.getvalue().splitlines()[-1]
    finally:
        torch.set_num_threads(threads)
    return ""


def a_pickled_state(name: str):
    def change(folder: Path, canary: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Bomb(canary), protocol=2))
        facts = json.loads((folder / MANIFEST).read_text())["facts"]
        write_manifest(folder, **facts)  # its author knows how one is made

    change.__name__ = f"a_pickled_{name}"
    return change


def a_manifest_that_points_outside(folder: Path, canary: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["../../../../etc/passwd"] = {"bytes": 1, "sha256": "0" * 64}
    content["sha256"] = atomic._content_hash(content)
    (folder / MANIFEST).write_text(json.dumps(content))


TO_GO_ON_FROM = [
    *map(a_pickled_state, ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin")),
    a_manifest_that_points_outside,
]


@pytest.mark.parametrize("change", TO_GO_ON_FROM, ids=lambda change: change.__name__)
def test_a_checkpoint_to_go_on_from_runs_nothing(interrupted, tmp_path, change):
    run = tmp_path / "out"
    shutil.copytree(interrupted, run)
    canary = tmp_path / "canary"
    change(run / "checkpoint-1", canary)
    said = go_on(run)
    assert not canary.exists()
    if change.__name__ == "a_pickled_training_args.bin":
        assert said == ""  # it is not read at all
    else:
        why = "outside of it" if "manifest" in change.__name__ else "could run code"
        assert said.startswith("error: ") and why in said


def test_a_tag_in_a_configuration_runs_nothing(interrupted, tmp_path):
    run = tmp_path / "out"
    shutil.copytree(interrupted, run)
    said = go_on(
        run, RESUMED + f"seed: !!python/object/apply:os.system ['touch {tmp_path}/canary']"
    )
    assert said.startswith("error: ") and "is no YAML" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["checkpoint-2", "notes", "model.safetensors"])
def test_a_link_in_a_checkpoint_is_not_written_through(interrupted, tmp_path, name):
    run, outside = tmp_path / "out", tmp_path / "outside"
    shutil.copytree(interrupted, run)
    outside.mkdir()
    (outside / "secret").write_text("mine")
    if (run / name).exists():
        (run / name).unlink()
    (run / name).symlink_to(outside / "secret" if "." in name else outside)
    assert go_on(run) == ""
    assert [(p.name, p.read_text()) for p in outside.iterdir()] == [("secret", "mine")]
    assert (run / "checkpoint-2" / "model.safetensors").is_file()
