"""Write the model card: description, evaluation, usage, training, limits.

The metadata (YAML at the top) has the evaluations as a model-index, which the Hub shows and
leaderboards read. Every figure is from a metrics.json, every setting from a run.json.
"""

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from pipeline.energy import INSTALL
from pipeline.hub.facts import STAGES, Evaluation, Facts, Step
from pipeline.model.reasoning_file import REASONING_FILE
from pipeline.model.trust import ADAPTER_CONFIG
from pipeline.model.value_head_file import VALUE_HEAD_FILE

PROJECT = "[thinkhead](https://huggingface.co/models?other=thinkhead)"
QUESTION = "Ann owns 26 eggs. Ann keeps only half of them. How many eggs are left with Ann?"


def model_card(
    facts: Facts,
    repo: str,
    *,
    hub_names: Mapping[str, str] | None = None,
    license: str | None = None,
    suites: Sequence[str] = ("nano",),
) -> str:
    """The text of README.md; `hub_names` maps data sets and suites to their names on the Hub, and
    `suites` are those that its evaluation command names."""
    names = hub_names or {}
    evaluate = (
        f"    python -m eval.run --checkpoint {repo} --suite {','.join(suites)} "
        "--output_dir runs/eval"
    )
    sections = [
        f"# {repo.rpartition('/')[2]}",
        _description(facts),
        _evaluation(facts, evaluate),
        _usage(facts, repo, evaluate),
        _training(facts),
        _energy(facts),
        _limits(facts),
    ]
    head = _metadata(facts, repo, names, license).to_yaml()
    return f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(
    facts: Facts, repo: str, names: Mapping[str, str], license: str | None
) -> ModelCardData:
    given = [name for step in facts.steps for name in str(step.data.get("dataset", "")).split(",")]
    data = [name.partition("=")[0].strip() for name in given]  # without the weight in a mixture
    base = facts.base.partition("@")[0]
    return ModelCardData(
        base_model=base if base not in ("", "nano") else None,
        datasets=sorted({names[name] for name in data if name in names}) or None,
        eval_results=[_eval_result(m, names) for m in facts.evaluations] or None,
        library_name="peft" if ADAPTER_CONFIG in facts.files else "transformers",
        license=license or facts.license or None,
        model_name=repo.rpartition("/")[2],
        pipeline_tag="text-generation",
        tags=["thinkhead", "reasoning", "trl", *([facts.stage] if facts.stage else [])],
    )


def _eval_result(metrics: Evaluation, names: Mapping[str, str]) -> EvalResult:
    suite = metrics["suite"]
    return EvalResult(
        task_type="text-generation",
        dataset_type=names.get(suite, suite),
        dataset_name=suite,
        metric_type="accuracy",
        metric_value=round(metrics["accuracy"], 4),
        metric_name=f"accuracy, {_strategy(metrics)}",
        metric_args={"n": metrics["n"], "ci95": [round(bound, 4) for bound in metrics["ci95"]]},
    )


def _description(facts: Facts) -> str:
    kind = "LoRA adapters for" if ADAPTER_CONFIG in facts.files else "A"
    stages = ", then ".join(STAGES[step.stage] for step in facts.steps)
    start = {"": "", "nano": " It was trained from scratch."}.get(
        facts.base, f" It was trained from [{facts.base}](https://huggingface.co/{facts.base})."
    )
    head = (
        f" `{VALUE_HEAD_FILE}` has a value head, which predicts the reward of the completion "
        "after every token; plain transformers ignores it."
        if VALUE_HEAD_FILE in facts.files
        else f" There is no `{VALUE_HEAD_FILE}`, so strategies that need a value head cannot be "
        "used: weighted, best_of_n, beam, mcts, revise."
    )
    if REASONING_FILE in facts.files:
        head += (
            f" **Thoughts need `{REASONING_FILE}`**, a decoder layer and a head of their own: load "
            "the model with `load_policy`. Plain transformers and vLLM read the folder without "
            "them, and the thoughts are then those of the head for answers."
        )
    state = (
        f" **Training is not finished: this is its state {facts.state}.**" if facts.state else ""
    )
    return (
        f"{kind} causal language model that thinks between `<think>` and `</think>` before it "
        f"answers, trained with {PROJECT}{f' by {stages}' if stages else ''}.{start}{head}{state}"
    )


def _evaluation(facts: Facts, command: str) -> str:
    if not facts.evaluations:
        return (
            f"## Evaluation\n\nNone is published with these weights. To evaluate them:\n\n{command}"
        )
    rows = [
        "| suite | strategy | problems | accuracy % [95% interval] | tokens a question | at most |"
    ]
    rows.append("| :-- | :-- | --: | --: | --: | --: |")
    for metrics in facts.evaluations:
        low, high = metrics["ci95"]
        tokens = metrics["completion_tokens_per_question"]["mean"]
        rows.append(
            f"| {metrics['suite']} | {_strategy(metrics)} | {metrics['n']:,} | "
            f"{100 * metrics['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | {tokens:.1f} | "
            f"{_token_limit(metrics.get('options', {}))} |"
        )
    cut = [m for m in facts.evaluations if m.get("rows_read", m["n"]) > m["n"]]
    partly = "".join(
        f" {m['suite']} was evaluated on {m['n']:,} of {m['rows_read']:,} problems." for m in cut
    )
    return (
        "## Evaluation\n\n"
        + "\n".join(rows)
        + "\n\nWilson intervals. Answers are compared as exact numbers or as mathematical "
        "expressions, by one grader for all suites; tokens count everything generated, including "
        f"thoughts and every sample of a vote.{partly}"
    )


def _usage(facts: Facts, repo: str, command: str) -> str:
    adapters = ADAPTER_CONFIG in facts.files
    vllm = (
        f"    vllm serve {facts.base or 'BASE_MODEL'} --enable-lora --lora-modules reasoner={repo} "
        "--reasoning-parser deepseek_r1"
        if adapters
        else f"    vllm serve {repo} --reasoning-parser deepseek_r1"
    )
    vote = "" if adapters else _VOTE.format(repo=repo)
    load = _LOAD_ADAPTERS if adapters else _LOAD
    return (
        "## How to run it\n\nWith transformers"
        + (" and peft" if adapters else "")
        + ", as it is:\n\n```python\n"
        + load.format(repo=repo, base=facts.base)
        + _ASK.format(question=QUESTION)
        + f"```\n{vote}\nWith vLLM (not tried when this card was written):\n\n{vllm}\n"
        f"\nWith {PROJECT}, all strategies and the value head included:\n\n"
        f"{command}\n\n"
        "```python\nfrom pipeline.model import load_policy\n\n"
        f'model, tokenizer = load_policy("{repo}", value_head="optional")\n```'
    )


_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
"""
_LOAD_ADAPTERS = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{base}")
if len(tokenizer) > model.get_input_embeddings().num_embeddings:
    model.resize_token_embeddings(len(tokenizer))  # the adapters have the rows of the tags
model = PeftModel.from_pretrained(model, "{repo}")
"""
_ASK = """\
question = "{question}"
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
output = model.generate(**prompt, max_new_tokens=256)
length = prompt["input_ids"].shape[1]
message = tokenizer.parse_response(output[0, length:], prefix=prompt["input_ids"][0])
print(message.get("content"))  # the thought is message["reasoning_content"]
"""
_VOTE = """
The repository has a majority vote over eight samples as `custom_generate`. It is code that runs on
your machine, so read `custom_generate/generate.py` first:

```python
output = model.generate(
    **prompt,
    custom_generate="{repo}",
    trust_remote_code=True,
    tokenizer=tokenizer,
    num_votes=8,
    max_new_tokens=256,
)
```
"""


def _training(facts: Facts) -> str:
    if not facts.steps:
        return "## How it was made\n\nUnknown: the folder had no `run.json`."
    parts = [_stage_section(step, number) for number, step in enumerate(facts.steps, start=1)]
    versions = ", ".join(f"{k} {v}" for k, v in (facts.versions or {}).items() if v)
    git = f", git revision `{facts.git}`" if facts.git else ""
    return "\n\n".join(["## How it was made", *parts, f"Versions: {versions}{git}."])


def _stage_section(step: Step, number: int) -> str:
    data = ", ".join(f"{k} `{v}`" for k, v in step.data.items())
    rows = [f"| {name} | `{value}` |" for name, value in sorted(step.settings.items())]
    table = "\n".join(["| setting | value |", "| :-- | :-- |", *rows])
    start = "from scratch" if step.model == "nano" else f"from `{step.model}`"
    return f"**{number}. {STAGES[step.stage]}**, {start}. Data: {data}.\n\n{table}"


def _energy(facts: Facts) -> str:
    """Energy and CO2 of every stage that was measured, or how to measure them."""
    measured = [(i, s, s.energy) for i, s in enumerate(facts.steps, start=1) if s.energy]
    if not measured:
        return (
            "## Energy and CO2\n\nNot measured. `--energy_country DEU` (ISO code of the country "
            f"whose electricity is used) measures the training with codecarbon: `{INSTALL}`."
        )
    rows = ["| stage | country | hours | kWh | g CO2e | hardware |"]
    rows.append("| :-- | :-- | --: | --: | --: | :-- |")
    for number, step, energy in measured:
        parts = energy["parts"]
        names = sorted({name for part in parts for name in (part["cpu"], part["gpu"]) if name})
        rows.append(
            f"| {number}. {STAGES[step.stage]} | {energy['country']} | "
            f"{energy['seconds'] / 3600:.3g} | {energy['energy_kwh']:.3g} | "
            f"{1000 * energy['co2_kg']:.3g} | {', '.join(names)} |"
        )
    missing = len(facts.steps) - len(measured)
    rest = f" {missing} of {len(facts.steps)} stages were not measured." if missing else ""
    return (
        "## Energy and CO2\n\n"
        + "\n".join(rows)
        + "\n\nOf the whole machine during training, by codecarbon, which estimates the power of a "
        "processor without a meter from its model and load, and that of memory always. CO2 follows "
        f"from the mix of the country or a stated intensity.{rest}"
    )


def _limits(facts: Facts) -> str:
    scope = (
        "The figures above hold for these suites, this grader and these token budgets"
        if facts.evaluations
        else "Nothing has been measured yet"
    )
    return (
        f"## Limits\n\n- {scope}; other questions, wordings and languages were not measured.\n"
        "- It was trained to give correct answers to problems like those of its data, not to be "
        "helpful, harmless or up to date. Answers can be wrong, also after a convincing thought.\n"
        "- A thought is text that the model writes before its answer. It need not be the reason "
        "for the answer: do not show it as an explanation.\n"
        "- Without a closing `</think>` within the token budget there is no answer."
    )


def _strategy(metrics: Evaluation) -> str:
    samples = metrics.get("options", {}).get("n", 1)
    return metrics["strategy"] + (f"@{samples}" if samples > 1 else "")


def _token_limit(options: Mapping[str, object]) -> str:
    """The token limit of an answer in an evaluation, as text; "-" if there was none.

    >>> _token_limit({"max_completion_tokens": 512, "max_sample_tokens": None}), _token_limit({})
    ('512', '-')
    >>> _token_limit({"max_sample_tokens": 256}), _token_limit({"reasoning_effort": "low"})
    ('256 a sample', 'effort low')
    """
    if options.get("max_completion_tokens"):
        return str(options["max_completion_tokens"])
    if options.get("reasoning_effort"):
        return f"effort {options['reasoning_effort']}"
    sample = options.get("max_sample_tokens")
    return f"{sample} a sample" if sample else "-"
