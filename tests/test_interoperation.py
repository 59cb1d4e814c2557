"""Checkpoints of every stage in tools that know nothing of this project: transformers, peft."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline.model import build_nano, load_policy, save_policy
from stages import ppo, publish, sft
from tests.hub import hub_environment, use_hub
from tests.hub_server import HubServer
from tests.test_hub_push import PPO, SFT

ROOT = Path(__file__).parents[1]
IDS_BT = torch.tensor([[5, 6, 7, 8]])
# What a user would read as a warning; the loader's own progress is none.
NOISE = re.compile(r"warning|unexpected|newly initialized|not used|missing|deprecated", re.I)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """{stage: checkpoint}, each made by its command; "adapter" are LoRA adapters on PPO's."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("stages")
    (folder / "sft.yaml").write_text(SFT)
    (folder / "ppo.yaml").write_text(PPO)
    sft.main(["--config", str(folder / "sft.yaml"), "--output_dir", str(folder / "sft")])
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(folder / "sft")]
    ppo.main([*config, "--output_dir", str(folder / "ppo")])
    model, tokenizer = load_policy(folder / "ppo", value_head="optional")
    del model.value_head
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    torch.set_num_threads(threads)
    yield {name: folder / name for name in ("sft", "ppo", "adapter")}


@pytest.fixture(scope="module")
def plain(stages, tmp_path_factory) -> Iterator[Callable[..., dict]]:
    """`plain(code)`: the JSON that code prints last, in a process with transformers alone, whose
    Hub has user/sft, user/ppo and user/adapter. It fails where a warning is printed."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    with HubServer() as server:
        use_hub(server, home, patch)
        for name, folder in stages.items():
            base = ["--base_model", "user/ppo"] if name == "adapter" else []
            publish.main(["--checkpoint", str(folder), "--repo_id", f"user/{name}", *base])

        def run(code: str) -> dict:
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=home,  # the project cannot be imported from here
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
                | hub_environment(server, home)
                | {"CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            said = [x for x in (done.stdout + done.stderr).splitlines() if NOISE.search(x)]
            # A line of peft's to itself: it calls transformers by an old name.
            said = [
                x for x in said if "is_gradient_checkpointing" not in x and "warnings.warn" not in x
            ]
            assert said == [], said
            return json.loads(done.stdout.splitlines()[-1])

        run.server = server
        yield run
    patch.undo()


def card_code(server: HubServer, name: str) -> str:
    """The first block of Python in a card."""
    card = server.files(f"user/{name}")["README.md"].decode()
    return re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)


STAGES = ["ppo", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("sft", "adapter"))]
LOGITS = """
import json, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained('user/{stage}')
print(json.dumps({{
    "message": message,
    "logits": model(torch.tensor([[5, 6, 7, 8]])).logits.tolist(),
}}))
"""


@pytest.fixture(scope="module")
def said(plain) -> Callable[[str], dict]:
    """`said(stage)`: the message of the card's code, and the logits of the model loaded alone."""
    found: dict[str, dict] = {}

    def run(stage: str) -> dict:
        if stage not in found:
            load = (
                LOGITS.format(stage=stage)
                if stage != "adapter"
                else ("\nimport json\nprint(json.dumps({'message': message}))")
            )
            found[stage] = plain(f"{card_code(plain.server, stage)}\n{load}")
        return found[stage]

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_of_the_card_runs_as_it_stands_without_a_warning(said, stage):
    message = said(stage)["message"]
    assert message["role"] == "assistant"
    # A model that has learned next to nothing may say anything, but the halves are told apart.
    assert set(message) <= {"role", "reasoning_content", "content"}
    assert "</think>" not in message.get("content", "")


@pytest.mark.parametrize("stage", STAGES[:2])
def test_the_plain_model_has_the_policys_logits(said, stages, stage):
    with torch.no_grad():
        ours = load_policy(stages[stage])[0](IDS_BT).logits
    theirs = torch.tensor(said(stage)["logits"])
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_text_generation_pipeline_takes_a_conversation(plain):
    code = (
        "import json\nfrom transformers import pipeline\n"
        "ask = pipeline('text-generation', model='user/ppo')\n"
        "message = [{'role': 'user', 'content': '1+1?'}]\n"
        "said = ask(message, max_new_tokens=8, do_sample=False)\n"
        "print(json.dumps(said[0]['generated_text'][-1]))"
    )
    assert plain(code)["role"] == "assistant"


@pytest.mark.slow
def test_peft_puts_the_published_adapters_on_the_published_model(plain, stages):
    code = (
        "import json, torch\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('user/ppo')\n"
        "model = PeftModel.from_pretrained(model, 'user/adapter').eval()\n"
        "print(json.dumps(model(torch.tensor([[5, 6, 7, 8]])).logits.tolist()))"
    )
    with torch.no_grad():
        merged = load_policy(stages["adapter"], value_head="optional")[0](IDS_BT).logits
        bare = load_policy(stages["ppo"])[0](IDS_BT).logits
    theirs = torch.tensor(plain(code))
    torch.testing.assert_close(theirs, merged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, bare, atol=1e-3)


def test_merged_adapters_are_a_plain_checkpoint(stages, tmp_path):
    model, tokenizer = load_policy(stages["adapter"], value_head="optional")
    save_policy(model, tokenizer, tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(theirs(IDS_BT).logits, model(IDS_BT).logits)


@pytest.mark.slow
def test_a_vote_travels_with_the_model_as_custom_generate(plain):
    code = card_code(plain.server, "ppo") + (
        "import json, torch\n"
        "torch.manual_seed(0)\n"
        "ids = model.generate(**prompt, custom_generate='user/ppo', trust_remote_code=True,\n"
        "    tokenizer=tokenizer, num_votes=4, max_new_tokens=12)\n"
        "print(json.dumps([ids.shape[0], ids.shape[1] - length, ids[0, :length].tolist()"
        " == prompt['input_ids'][0].tolist()]))"
    )
    rows, new, same_prompt = plain(code)
    assert rows == 1 and 1 <= new <= 12 and same_prompt


@pytest.fixture(scope="module")
def vote():
    """The functions of custom_generate/generate.py, as transformers imports them."""
    names: dict = {}
    exec((ROOT / "pipeline/hub/custom_generate/generate.py").read_text(), names)
    return names


def test_the_most_frequent_answer_is_elected_and_open_thoughts_do_not_vote(vote, tokenizer):
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    texts = ["1</think>7<eos>", "2</think>8<eos>", "3 4 5 6 7", "9 9</think> 8<eos>"]
    rows = [ids(text) for text in texts]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    padded = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    assert vote["elect"](padded, tokenizer) == 1
    assert vote["elect"](padded[2:3], tokenizer) == 0  # nobody has an answer
    assert [vote["answer_of"](row, tokenizer) for row in rows] == ["7", "8", "", "8"]


def test_the_response_template_splits_thought_and_answer(stages):
    _, tokenizer = load_policy(stages["ppo"])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}], add_generation_prompt=True, tokenize=False
    )
    said = tokenizer.parse_response("1+1=2</think>2<eos>", prefix=prompt)
    assert (said["reasoning_content"], said["content"]) == ("1+1=2", "2")


# ---- tools that are not installed with us ----


@pytest.fixture(scope="module")
def reciter(tokenizer, tmp_path_factory) -> Path:
    """A checkpoint that says 1</think>2<eos> to whatever it is asked: each token of a prompt's
    last one alone, so what a tool shows is known before."""
    size = len(tokenizer)
    model = build_nano(tokenizer, hidden_size=size + size % 2, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=8, tie=False)  # fmt: skip
    said = tokenizer("<think>1</think>2<eos>", add_special_tokens=False).input_ids
    assert len(said) == 5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()  # neither attention nor MLP adds anything
        model.get_input_embeddings().weight.fill_diagonal_(1.0)
        for token, following in pairwise(said):
            model.lm_head.weight[following, token] = 10.0
    folder = tmp_path_factory.mktemp("reciter")
    save_policy(model, tokenizer, folder)
    return folder


def test_the_reciter_says_what_the_tests_below_expect(reciter):
    model, tokenizer = load_policy(reciter, value_head="optional")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
    assert tokenizer.decode(ids[prompt["input_ids"].shape[1] :]) == "1</think>2<eos>"


@pytest.fixture
def served() -> Iterator[str]:
    """The address of a running `transformers serve`."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    command += ["--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(1)
    raise AssertionError("transformers serve does not answer")


def _ask(url: str, model: Path, **more) -> str:
    message = {"role": "user", "content": "1+1?"}
    body = {"model": str(model), "messages": [message], "max_tokens": 8} | more
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_transformers_serve_sends_thought_and_answer_apart(served, reciter, stages):
    message = json.loads(_ask(served, reciter))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("1", "2")
    for stage in ("sft", "ppo"):  # eight tokens that have learned nothing: a thought left open
        message = json.loads(_ask(served, stages[stage]))["choices"][0]["message"]
        assert message.get("reasoning_content") or message.get("content")
        assert "<think>" not in (message.get("content") or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "ppo", "adapter", "reciter"])
def test_lm_evaluation_harness_loads_and_asks_it(stages, reciter, tmp_path, name):
    pytest.importorskip("lm_eval")
    rows = [{"question": f"{n}+1?", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "task: sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        "output_type: generate_until\ntest_split: test\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: ['<eos>'], max_gen_toks: 8}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    given = f"pretrained={(stages | {'reciter': reciter})[name]}"
    if name == "adapter":
        given = f"pretrained={stages['ppo']},peft={stages['adapter']}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", "sums"]
    command += ["--model_args", f"{given},think_end_token=</think>"]
    command += ["--include_path", str(tmp_path), "--device", "cpu", "--apply_chat_template"]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())
    right = results["results"]["sums"]["exact_match,none"]
    if name == "reciter":
        assert right == 0.25  # 1+1 alone; 0 where the thought were taken for a part of the answer
