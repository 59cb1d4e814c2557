"""A checkpoint that is broken is refused: exit code 2 and one line with file, value, rule, remedy.

None of these may load, however little is wrong: a weight that is not there would be a random one.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from eval import run as eval_run
from pipeline.model import (
    VALUE_HEAD_FILE,
    VERIFIER_FILE,
    Verifier,
    load_policy,
    save_policy,
    save_value_head,
    save_verifier,
    trust,
)
from pipeline.model.verifier import FEATURES
from pipeline.model.weights import check_finite, read_header
from pipeline.runtime import one_line_errors

Change = Callable[[Path], None]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(_tiny_policy, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "policy"
    save_policy(_tiny_policy, tokenizer, folder)
    save_verifier(Verifier(hidden=4), folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "policy")


def tensors(change: Callable[[dict], dict], file: str = WEIGHTS) -> Change:
    """Change the tensors of a file; its metadata stays."""

    def apply(folder: Path) -> None:
        _, metadata = read_header(folder / file)
        save_file(change(load_file(folder / file)), folder / file, metadata=metadata)

    return apply


def entries(file: str = "config.json", **changes: object) -> Change:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(content))

    return apply


def both(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def content(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


def layers(count: int) -> Change:
    return entries(num_hidden_layers=count, layer_types=["full_attention"] * count)


def spoilt(file: str, name: str, value: float = math.nan) -> Change:
    def change(found: dict) -> dict:
        found[name].view(-1)[-1] = value
        return found

    return tensors(change, file)


def without(part: str) -> Change:
    return tensors(lambda found: {k: v for k, v in found.items() if part not in k})


def sharded(weight_map: object) -> Change:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return apply


def as_int8(part: str) -> Change:
    return tensors(lambda f: {k: v.to(torch.int8) if part in k else v for k, v in f.items()})


def verifier_of(**about: object) -> Change:
    metadata = {"critic": json.dumps({"features": FEATURES, **about})}

    def apply(folder: Path) -> None:
        save_file(load_file(folder / VERIFIER_FILE), folder / VERIFIER_FILE, metadata=metadata)

    return apply


def a_head(width: int, **shape: object) -> Change:
    """A linear value head, and the shape it says it has."""
    metadata = {"value_head": json.dumps(shape)}

    def apply(folder: Path) -> None:
        made = {"last.weight": torch.zeros(1, width), "last.bias": torch.zeros(1)}
        save_file(made, folder / VALUE_HEAD_FILE, metadata=metadata)

    return apply


LAYER = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
BROKEN = {
    # weights that would be random
    "no tensor at all": (
        tensors(lambda f: {}),
        "num_hidden_layers=2, and the weights are 0 tensors",
    ),
    "one tensor left": (
        tensors(lambda f: {NORM: f[NORM]}),
        "num_hidden_layers=2, and the weights are 1 tensors",
    ),
    "a tensor missing": (without(LAYER), f"{LAYER} is missing; every weight must be stored"),
    "a layer missing": (without("layers.1."), r"layers\.1\..* is missing and 10 more"),
    "keys renamed": (
        tensors(lambda f: {k.replace("model.", "trunk."): v for k, v in f.items()}),
        r"is missing and .* more, trunk\.embed_tokens\.weight has no place in the model and",
    ),
    "a key left over": (tensors(lambda f: f | {"extra": torch.zeros(2)}), "extra has no place"),
    "a layer more in config.json": (layers(3), r"num_hidden_layers=3\): model\.layers\.2"),
    "a layer less in config.json": (
        layers(1),
        r"layers=1\): model\.layers\.1.*no place",
    ),
    "another model_type": (
        entries(model_type="llama", architectures=["LlamaForCausalLM"]),
        r"model_type=llama.*k_norm\.weight has no place in the model and 3 more",
    ),
    "another model_type with the same keys": (
        both(without("k_norm"), without("q_norm"), entries(model_type="mistral")),
        "architectures=Qwen3ForCausalLM, and its model_type=.* makes a Mini?stralForCausalLM",
    ),
    "no longer tied": (entries(tie_word_embeddings=False), r"lm_head\.weight is missing"),
    "a tensor of another shape": (
        tensors(lambda f: f | {NORM: torch.zeros(33)}),
        r"model\.norm\.weight is \[33\] instead of \[32\]",
    ),
    # numbers that are none
    "NaN": (spoilt(WEIGHTS, NORM), r"1 of the 32 numbers of model\.norm\.weight are NaN"),
    "infinity": (spoilt(WEIGHTS, NORM, math.inf), r"1 of the 32 numbers of model\.norm\.weight"),
    "NaN in the value head": (spoilt(VALUE_HEAD_FILE, "last.bias"), "numbers of last.bias are NaN"),
    "NaN in the verifier": (spoilt(VERIFIER_FILE, "mean"), "numbers of mean are NaN"),
    "int8": (as_int8("q_proj"), r"q_proj\.weight is stored as I8 without a quantization_config"),
    "int8 everywhere": (as_int8(""), "is stored as I8 without a quantization_config"),
    "int8 in the value head": (
        tensors(lambda f: {k: v.to(torch.int8) for k, v in f.items()}, VALUE_HEAD_FILE),
        "last.bias is stored as I8",
    ),
    # more memory than the files have bytes
    "ten thousand layers": (layers(10**4), "num_hidden_layers=10,000, and the weights are 24 ten"),
    "a vocabulary of a billion": (entries(vocab_size=10**9), "describes a model of 32,0"),
    "a hidden size of a billion": (entries(hidden_size=10**9), "describes a model of"),
    "a verifier of 12.8 GB": (verifier_of(hidden=4 * 10**8), "inner.bias has the shape"),
    "a verifier of 32 PB": (
        verifier_of(hidden=10**15),
        r"and a verifier with hidden=1000000000000000",
    ),
    "a value head of any size": (
        a_head(1, hidden_size=10**12, hidden=None),
        r"last\.weight has the shape \(1, 1\), and a value head of .* has \(1, 1000000000000\)",
    ),
    # files that are something else
    "config.json a list": (content("config.json", "[]"), "config.json holds a list where a JSON"),
    "config.json a number": (content("config.json", "7"), "config.json holds a int where a JSON"),
    "config.json no JSON": (content("config.json", "{"), "config.json is no JSON"),
    "tokenizer_config.json a list": (
        content("tokenizer_config.json", "[]"),
        "tokenizer_config.json holds a list",
    ),
    "tokenizer.json empty": (content("tokenizer.json", "{}"), "the tokenizer cannot be loaded"),
    "index a list": (content(INDEX, "[]"), "index.json holds a list where a JSON object belongs"),
    "index without weights": (sharded({}), "has weight_map={}, and it must name the file"),
    "index of text": (sharded("all"), "has weight_map=all, and it must name"),
    "index of numbers": (sharded({NORM: 1}), "names 1, outside of its folder"),
    "index of a missing shard": (sharded({NORM: "model-00002-of-00002.safetensors"}), "is missing"),
    "no heads": (
        entries(num_attention_heads=0, num_key_value_heads=0),
        r"cannot be loaded \(ZeroDivisionError",
    ),
    "no key-value heads": (entries(num_key_value_heads=0), "ZeroDivisionError"),
    "an unknown activation": (entries(hidden_act="nothing"), "KeyError: 'nothing'"),
    "a width in words": (entries(hidden_size="wide"), "expected int, got str"),
    "an unknown model_type": (entries(model_type="nothing"), "model type `nothing`"),
    "a quantizer that is not installed": (
        entries(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"ImportError: .*optimum.*; install it, or take a checkpoint that does not need it",
    ),
    "weights that are a folder": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "model.safetensors is no regular file",
    ),
    # heads
    "a value head with a key more": (
        tensors(lambda f: f | {"extra": torch.zeros(1)}, VALUE_HEAD_FILE),
        r"extra has the shape \(1,\), and a value head of .* has None",
    ),
    "a value head of another width": (
        a_head(16, hidden_size=16, hidden=None),
        "reads hidden states of width 16, and those of the model have 32",
    ),
    "a value head that says another width": (
        a_head(32, hidden_size=32, hidden=3),
        r"inner\.0\.bias has the shape None, and a value head of .* has \(3,\)",
    ),
    "a value head without metadata": (
        lambda f: save_file(load_file(f / VALUE_HEAD_FILE), f / VALUE_HEAD_FILE),
        "has no metadata 'value_head' with hidden_size and hidden",
    ),
    "a verifier without metadata": (
        lambda f: save_file(load_file(f / VERIFIER_FILE), f / VERIFIER_FILE),
        r"has no metadata 'verifier' .*; train it again with python -m stages\.verifier",
    ),
    "a verifier with a key more": (
        tensors(lambda f: f | {"extra": torch.zeros(1)}, VERIFIER_FILE),
        r"extra has the shape \(1,\)",
    ),
    # chat templates
    "a template that is none": (
        content("chat_template.jinja", "{% for"),
        "its chat template is no Jinja template",
    ),
    "a template that is a number": (
        entries("tokenizer_config.json", chat_template=5),
        "its chat template is 5, and it must be text",
    ),
}


@one_line_errors
def load(folder: Path) -> None:
    load_policy(folder)


def refusal(main: Callable[[], None], capsys: pytest.CaptureFixture) -> str:
    """The line in which a command refuses; it must end with 2, and say nothing behind it."""
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    lines = capsys.readouterr().err.rstrip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:]
    return errors[0]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(folder, capsys, kind):
    change, message = BROKEN[kind]
    change(folder)
    said = refusal(lambda: load(folder), capsys)
    assert re.search(message, said), said
    assert str(folder) in said and ";" in said  # where, and what to do


@pytest.mark.parametrize("kind", ["a tensor missing", "NaN", "a verifier without metadata"])
def test_an_evaluation_prints_no_figure_of_a_broken_checkpoint(folder, tmp_path, capsys, kind):
    BROKEN[kind][0](folder)
    arguments = ["--checkpoint", str(folder), "--suite", "nano", "--limit", "1"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    assert re.search(BROKEN[kind][1], refusal(lambda: eval_run.main(arguments), capsys))
    assert not (tmp_path / "out").exists()


# ---- what is no fault ----


def index_of_all(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    sharded(dict.fromkeys(names, "model-00001-of-00001.safetensors"))(folder)


SOUND = {
    "the tied weight stored as well": tensors(
        lambda f: f | {"lm_head.weight": f["model.embed_tokens.weight"].clone()}
    ),
    "a value head among the weights": tensors(lambda f: f | {"value_head.w": torch.zeros(1)}),
    "a value head of TRL among the weights": tensors(
        lambda f: f | {"v_head.summary.weight": torch.zeros(1, 32)}
    ),
    "weights in shards": index_of_all,
    "no architectures": entries(architectures=None),
    "half precision": tensors(lambda f: {k: v.to(torch.float16) for k, v in f.items()}),
    "no value of the largest size": tensors(lambda f: f | {NORM: torch.full((32,), 3e38)}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_belongs_to_a_checkpoint_is_loaded(folder, whole, kind):
    SOUND[kind](folder)
    before, after = load_policy(whole)[0], load_policy(folder)[0]
    same = before.state_dict().keys() - {NORM}
    assert before.state_dict().keys() == after.state_dict().keys()
    for name in same:
        torch.testing.assert_close(
            after.state_dict()[name].float(), before.state_dict()[name], atol=1e-3, rtol=1e-3
        )


LEGACY = {
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4),
    },
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    },
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
}


@pytest.mark.parametrize("family", LEGACY)
def test_buffers_of_earlier_versions_of_transformers_are_no_fault(
    family, make_model, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer()
    model = make_model(family, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tensors(lambda found: found | LEGACY[family])(tmp_path)
    loaded, _ = load_policy(tmp_path, value_head="optional")
    ids = torch.tensor([[5, 9, 40]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


STATEFUL = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "intermediate_size": 64},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "intermediate_size": 64,
        **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
        **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "head_dim"), 8),
    },
    "mamba": {"state_size": 4},
}


@pytest.mark.parametrize("family", STATEFUL)
def test_a_model_with_a_state_besides_keys_and_values_is_refused(family, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2} if family != "mamba" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        **heads,
        **STATEFUL[family],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"layers of model_type={family} keep a state besides"):
        load_policy(tmp_path, value_head="new", will_grow=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("place", [0, 17, -1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_found_wherever_it_stands(dtype, place, value):
    tensor = torch.randn(999).to(dtype)
    check_finite([("w", tensor), ("ids", torch.tensor([1]))], "here")
    tensor[place] = value
    with pytest.raises(ValueError, match="here: 1 of the 999 numbers of w are NaN or infinite"):
        check_finite([("w", tensor)], "here")


# ---- chat templates of a folder here ----

LOOP = "{% for i in range(99999) %}"
ENDLESS = LOOP * 4 + "x" + "{% endfor %}" * 4
GROWING = "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
TEMPLATES = {
    "it never ends": (ENDLESS, "does not end in 1 s"),
    "it takes all memory": (GROWING + "{% endfor %}", "takes more than 1 GB"),
    "it never ends without thinking": (
        "{% if enable_thinking is false %}" + ENDLESS + "{% endif %}",
        "does not end in 1 s",
    ),
    "it never ends behind a system message": (
        "{% if messages[0].role == 'system' %}" + ENDLESS + "{% endif %}",
        "does not end in 1 s",
    ),
}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *((kind, "chat_template.jinja") for kind in TEMPLATES),
        ("it never ends", "additional_chat_templates/tool.jinja"),
    ],
)
def test_a_template_that_hangs_is_refused_in_a_folder_here_too(
    folder, capsys, monkeypatch, kind, place
):
    template, message = TEMPLATES[kind]
    # Enough to fill the memory on a busy machine.
    monkeypatch.setattr(trust, "TEMPLATE_SECONDS", 1 if "end" in message else 200)
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text(template)
    said = refusal(lambda: load(folder), capsys)
    assert f"its chat template {message}" in said and "do not use this model" in said


def test_our_own_templates_cost_no_trial(whole, monkeypatch):
    monkeypatch.setattr(trust, "TEMPLATE_CHECK", Path("no such file"))
    load_policy(whole)


# ---- files that are equal where their tensors are ----


@pytest.mark.parametrize("file", [VALUE_HEAD_FILE, VERIFIER_FILE])
def test_equal_heads_are_equal_files(tiny_policy, tmp_path, file):
    torch.manual_seed(0)
    verifier, found = Verifier(), set()
    for _ in range(12):  # an order by chance would be the same every time in 1 of 2,000 trials
        save_value_head(tiny_policy.value_head, tmp_path)
        save_verifier(verifier, tmp_path)
        found.add((tmp_path / file).read_bytes())
    assert len(found) == 1
