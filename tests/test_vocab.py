"""Reasoning tokens on every shape of model and tokenizer, and the conversations they render."""

import copy
import logging
import re

import pytest
import torch
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from pipeline.chat.prompts import encode_prompt, user_message
from pipeline.model import (
    add_reasoning_tokens,
    attach_value_head,
    build_nano,
    load_policy,
    train_tokenizer,
    values_of,
)
from pipeline.scoring import supports_packing

FAMILIES = ("llama", "qwen3", "mistral", "gemma", "gpt2", "gpt_neox", "opt")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{{ '' }}\n"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# Like Qwen3: knows thoughts, but leaves it to the model to open one.
THINKING_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Like DeepSeek-R1: always opens a thought.
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content }}{% else %}"
    "{{ '<A>' + m.content.split('</think>')[-1] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
)
IDS = torch.tensor([[5, 9, 40, 77, 3, 120]])
TURN = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "5", "reasoning_content": "2+3=5"},
]


def operate(model, tokenizer, **kwargs):
    return model, tokenizer, add_reasoning_tokens(model, tokenizer, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [False, True])
def test_old_tokens_keep_their_logits(family, tie, make_model, make_tokenizer):
    tokenizer = make_tokenizer(pad="missing")
    old_size = len(tokenizer)
    model = make_model(family, vocab_size=old_size, tie=tie)
    with torch.no_grad():
        before_BTV = model(IDS).logits
        grown = add_reasoning_tokens(model, tokenizer)
        after_BTV = model(IDS).logits
    assert grown == 3  # two tags and a pad token
    torch.testing.assert_close(after_BTV[..., :old_size], before_BTV, rtol=0, atol=1e-5)
    assert after_BTV.shape[-1] == model.config.vocab_size == len(tokenizer)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tie


def test_a_model_that_also_takes_images_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sight |= {"num_attention_heads": 2, "image_size": 28}
    config = AutoConfig.for_model(
        "gemma3", text_config=text | {"sliding_window": 8}, vision_config=sight
    )
    model = AutoModelForCausalLM.from_config(config)
    assert not supports_packing(model)  # its text model has sliding windows
    with pytest.raises(ValueError, match=r"Gemma3ForConditionalGeneration.*only language models"):
        add_reasoning_tokens(model, tokenizer)


def test_a_prepared_model_generates_greedily_without_the_options_it_came_with(
    make_model, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer))
    model.generation_config.update(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.5
    )
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]  # as Qwen2.5 and Llama 3
    add_reasoning_tokens(model, tokenizer)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == [tokenizer.eos_token_id, 7]
    expected = IDS
    with torch.no_grad():
        for _ in range(8):
            expected = torch.cat([expected, loaded(expected).logits[:, -1:].argmax(-1)], dim=1)
        made = loaded.generate(IDS, max_new_tokens=8, eos_token_id=None)
    assert made.tolist() == expected.tolist()


def test_each_tag_is_one_id_that_decoding_keeps(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    add_reasoning_tokens(make_model("llama", vocab_size=len(tokenizer)), tokenizer)
    ids = tokenizer("<think>1</think>2</s>").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<think>", "1", "</think>", "2", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>1</think>2"


def test_tags_that_were_special_become_plain_and_stay_so(make_model, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    tags = [AddedToken(tag, special=True) for tag in ("<think>", "</think>")]
    tokenizer.add_special_tokens({"extra_special_tokens": tags})
    size = len(tokenizer)
    model = make_model("llama", vocab_size=size)
    assert add_reasoning_tokens(model, tokenizer) == 0
    assert len(tokenizer) == size
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert "<think>" not in one.all_special_tokens
        assert one.decode(one("<think>1</think>").input_ids, skip_special_tokens=True) == (
            "<think>1</think>"
        )


def test_a_second_call_changes_nothing(make_model, make_tokenizer):
    model, tokenizer, _ = operate(
        make_model("llama", vocab_size=260),
        make_tokenizer(pad="eos", template=CHATML, added=CHATML_TOKENS),
    )
    weights = copy.deepcopy(model.state_dict())
    template, backend = tokenizer.chat_template, tokenizer.backend_tokenizer.to_str()
    assert add_reasoning_tokens(model, tokenizer) == 0
    assert tokenizer.chat_template == template
    assert tokenizer.backend_tokenizer.to_str() == backend
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_a_vocabulary_with_room_keeps_its_rows_and_starts_the_new_ones(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    old_size = len(tokenizer)
    model = make_model("llama", vocab_size=320)
    with torch.no_grad():
        model.lm_head.weight[old_size:] = 1e3  # whatever padding holds
    assert add_reasoning_tokens(model, tokenizer) == 0
    rows_VD = model.lm_head.weight
    assert rows_VD.shape[0] == 320
    assert rows_VD[old_size : len(tokenizer)].abs().max() < 1
    assert (rows_VD[len(tokenizer) :] == 1e3).all()


def test_a_bias_of_the_lm_head_starts_at_its_mean(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer))
    model.lm_head.bias = torch.nn.Parameter(torch.arange(len(tokenizer)).float())  # mean 129
    add_reasoning_tokens(model, tokenizer)
    assert model.lm_head.bias[-2:].tolist() == [129.0, 129.0]


@pytest.mark.parametrize("tie", [False, True])
def test_tags_start_near_the_rows_of_newline_and_eos_and_padding_near_the_mean(
    tie, make_model, make_tokenizer
):
    tokenizer = make_tokenizer(pad="missing")
    size = len(tokenizer)
    model, _, _ = operate(make_model("llama", vocab_size=size, tie=tie), tokenizer)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        old_VD, new_ND = module.weight[:size], module.weight[size:]
        newline, eos = tokenizer.convert_tokens_to_ids(["Ċ", tokenizer.eos_token])
        starts_ND = torch.stack([old_VD[newline], old_VD[eos], old_VD.mean(0)])
        distance_N = (new_ND - starts_ND).norm(dim=1)
        assert tokenizer.convert_ids_to_tokens(range(size, size + 3)) == [
            *("<think>", "</think>", tokenizer.pad_token)
        ]
        assert (distance_N > 0).all()
        assert (distance_N < 0.2 * old_VD.norm(dim=1).mean()).all()


def test_the_seed_alone_decides_the_new_rows(make_model, make_tokenizer):
    rows = []
    for torch_seed, seed in ((1, 0), (2, 0), (1, 7)):
        model = make_model("llama", vocab_size=259)
        torch.manual_seed(torch_seed)
        add_reasoning_tokens(model, make_tokenizer(), seed=seed)
        rows.append(model.lm_head.weight[-2:])
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("pad", ["own", "missing", "eos"])
def test_pad_and_eos_differ_and_everybody_agrees_on_them(pad, make_model, make_tokenizer):
    model, tokenizer, _ = operate(make_model("gpt2", vocab_size=260), make_tokenizer(pad=pad))
    assert tokenizer.pad_token == ("[PAD]" if pad == "own" else "<pad>")
    assert tokenizer.padding_side == "left"
    for config in (model.config, model.generation_config):
        assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id


def test_a_token_the_vocabulary_ships_for_padding_is_taken(make_model, make_tokenizer):
    tokenizer = make_tokenizer(pad="missing", added=("<|finetune_right_pad_id|>",))
    assert add_reasoning_tokens(make_model("llama", vocab_size=len(tokenizer)), tokenizer) == 2
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_further_end_tokens_of_a_chat_model_are_kept(make_model, make_tokenizer):
    model, tokenizer = make_model("llama", vocab_size=259), make_tokenizer()
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    add_reasoning_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == [7, tokenizer.eos_token_id]


def test_a_tokenizer_without_eos_is_refused_with_the_remedy(make_model, make_tokenizer):
    tokenizer = make_tokenizer(eos=None, pad="missing")
    tokenizer.name_or_path = "some/model"
    with pytest.raises(ValueError, match=r"'some/model' has no EOS.*set tokenizer.eos_token"):
        add_reasoning_tokens(make_model("llama", vocab_size=300), tokenizer)


def test_a_tokenizer_python_runs_is_refused(make_model, make_tokenizer, monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(ValueError, match=r"is no fast tokenizer.*use_fast"):
        add_reasoning_tokens(make_model("llama", vocab_size=300), make_tokenizer())


def test_a_value_head_survives_the_resize(make_model, make_tokenizer):
    model = attach_value_head(make_model("llama", vocab_size=259))
    torch.nn.init.ones_(model.value_head.last.weight)
    with torch.no_grad():
        before_BT = values_of(model(IDS, logits_to_keep=2))
        assert add_reasoning_tokens(model, make_tokenizer()) == 2
        torch.testing.assert_close(values_of(model(IDS, logits_to_keep=2)), before_BT)


# What conversations look like.


def render(tokenizer, messages, **kwargs):
    return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)


def dressed(make_model, make_tokenizer, **kwargs):
    tokenizer = make_tokenizer(**kwargs)
    add_reasoning_tokens(make_model("llama", vocab_size=len(tokenizer)), tokenizer)
    return tokenizer


def test_a_base_model_gets_a_plain_text_template(make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer)
    question = "Question: What is 2 + 3?\nAnswer:"
    assert render(tokenizer, TURN) == question + "<think>2+3=5</think>5</s>"
    assert render(tokenizer, TURN[:1], add_generation_prompt=True) == question + "<think>"


def test_nano_has_role_markers(tokenizer):
    assert render(tokenizer, TURN) == (
        "<|user|>What is 2 + 3?<|assistant|><think>2+3=5</think>5<eos>"
    )


def test_bos_is_written_where_the_tokenizer_writes_it(make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, bos=True)
    ids = encode_prompt(tokenizer, "hi")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_an_instruct_template_stays_around_the_thought(make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=CHATML, added=CHATML_TOKENS)
    question = "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    assert render(tokenizer, TURN) == question + "<think>2+3=5</think>5<|im_end|>\n"
    assert render(tokenizer, TURN[:1], add_generation_prompt=True) == question + "<think>"
    assert render(tokenizer, TURN[:1]) == "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n"


def test_a_template_that_knows_thoughts_is_only_told_to_open_one(make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=THINKING_CHATML, added=CHATML_TOKENS)
    think = render(tokenizer, TURN[:1], add_generation_prompt=True)
    answer = render(tokenizer, TURN[:1], add_generation_prompt=True, enable_thinking=False)
    assert think.endswith("assistant\n<think>")
    assert answer.endswith("assistant\n<think>\n\n</think>\n\n")
    assert render(tokenizer, TURN).endswith("<think>\n2+3=5\n</think>\n\n5<|im_end|>\n")


def test_a_template_that_opens_the_thought_itself_can_close_it(make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=R1)
    assert render(tokenizer, TURN[:1], add_generation_prompt=True).endswith("<A><think>\n")
    answer = render(tokenizer, TURN[:1], add_generation_prompt=True, enable_thinking=False)
    assert answer.endswith("<A><think>\n</think>")


TEMPLATES = [None, CHATML, THINKING_CHATML]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_rendered_turn_parses_back(template, make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=template, added=CHATML_TOKENS)
    prompt = encode_prompt(tokenizer, "What is <think>2</think>? Answer:")
    ids = tokenizer("2+3=5</think>It is 5.</s>", add_special_tokens=False).input_ids
    parsed = tokenizer.parse_response(ids, prefix=prompt)
    assert parsed == {"role": "assistant", "reasoning_content": "2+3=5", "content": "It is 5."}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_direct_answer_parses_as_visible(template, make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=template, added=CHATML_TOKENS)
    prompt = encode_prompt(tokenizer, "What is 2 + 3?", think=False)
    parsed = tokenizer.parse_response("It is 5.</s>", prefix=prompt)
    assert parsed == {"role": "assistant", "content": "It is 5."}


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_unfinished_thought_shows_nothing(template, make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=template, added=CHATML_TOKENS)
    parsed = tokenizer.parse_response("2+3=", prefix=encode_prompt(tokenizer, "What is 2 + 3?"))
    assert parsed == {"role": "assistant", "reasoning_content": "2+3="}


@pytest.mark.parametrize("template", [None, CHATML])
def test_thoughts_before_a_later_question_are_dropped(template, make_model, make_tokenizer):
    tokenizer = dressed(make_model, make_tokenizer, template=template, added=CHATML_TOKENS)
    text = render(tokenizer, [*TURN, *TURN])
    assert text.count("2+3=5") == 1
    assert text.index("<think></think>5") < text.index("<think>2+3=5</think>5")


def test_generation_markers_cover_thought_answer_and_eos(tokenizer):
    encoded = tokenizer.apply_chat_template(TURN, return_assistant_tokens_mask=True)
    marked = [i for i, on in zip(encoded.input_ids, encoded.assistant_masks, strict=True) if on]
    assert tokenizer.decode(marked) == "<think>2+3=5</think>5<eos>"


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="role tool is not one of system, user, assistant"):
        render(tokenizer, [{"role": "tool", "content": "7"}])


# The nano tokenizer and model.


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "12+7=19\n",
        "  two  spaces\t",
        "Ünïcode ½ ١٢ 中文 🙂",
        "a\r\nb\x00c",
        "<think>1</think>",
    ],
)
def test_every_text_survives_the_nano_tokenizer(text, tokenizer):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_digit_is_a_token_of_its_own(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("What is 1234.5+60?").input_ids)
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("1234560")


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 262"):
        train_tokenizer(["a"], vocab_size=100)


def test_nano_starts_out_undecided_and_is_a_function_of_its_seed(tokenizer):
    torch.manual_seed(3)
    first = build_nano(tokenizer, num_hidden_layers=2)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # building does not move the global generator
    same, other = build_nano(tokenizer, num_hidden_layers=2), build_nano(tokenizer, seed=1)
    ids = torch.tensor([encode_prompt(tokenizer, "What is 2 + 3?")])
    with torch.no_grad():
        logits_BTV = first(ids).logits
        assert torch.equal(logits_BTV, same(ids).logits)
        assert not torch.equal(logits_BTV, other(ids).logits)
    assert logits_BTV.std() < 0.5
    assert first.lm_head.weight is first.model.embed_tokens.weight


def test_a_user_message_is_one_turn():
    assert user_message("q") == [{"role": "user", "content": "q"}]


# ---- tokens that the embedding has no row for ----


def test_tokens_without_a_row_are_named_and_start_as_new_ones_do(
    make_model, make_tokenizer, caplog
):
    tokenizer = make_tokenizer(added=("[A]", "[B]"))
    model = make_model("llama", vocab_size=len(tokenizer) - 2)
    old = model.get_input_embeddings().weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        *_, grown = operate(model, tokenizer)
    assert grown == 4  # two that were missing, and the tags
    said = r"2 tokens have ids beyond the embedding's 259 rows \('\[A\]', '\[B\]'\)"
    assert re.search(said, caplog.text)
    rows = model.get_input_embeddings().weight[len(old) : len(old) + 2]  # without the tags
    spread = old.std(dim=0)
    assert ((rows - old.mean(dim=0)).abs() < 0.6 * spread).all()


def test_a_tokenizer_that_fits_is_not_mentioned(make_model, make_tokenizer, caplog):
    tokenizer = make_tokenizer()
    with caplog.at_level(logging.WARNING):
        operate(make_model("llama", vocab_size=len(tokenizer)), tokenizer)
    assert "beyond the embedding" not in caplog.text


def test_a_checkpoint_whose_tokenizer_is_larger_is_refused_unless_rows_are_to_be_added(
    make_model, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer(added=("[A]",))
    make_model("llama", vocab_size=len(tokenizer) - 1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = len(tokenizer) - 1
    message = rf"gives '\[A\]' the id {rows}, and the embedding has {rows} rows; take the tokenizer"
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path, value_head="optional")
    model, loaded = load_policy(tmp_path, value_head="optional", will_grow=True)
    assert operate(model, loaded)[-1] == 3
