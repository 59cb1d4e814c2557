"""One forward, logits and values: on every family, under every wrapper a trainer puts around it."""

import copy
import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_flatten
from transformers.modeling_outputs import CausalLMOutput

from pipeline.model import ValueHead, attach_value_head, has_value_head, values_of

FAMILIES = ("llama", "qwen3", "mistral", "gemma", "gpt2", "gpt_neox", "opt")
IDS = torch.tensor([[5, 9, 40, 77, 3, 120], [8, 8, 1, 60, 61, 62]])


def with_head(model, **kwargs):
    """A value head that says something: at 0 every comparison would hold."""
    attach_value_head(model, **kwargs)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.value_head.last.weight, std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_values_read_what_enters_the_lm_head(family, make_model):
    model = with_head(make_model(family, vocab_size=130))
    with torch.no_grad():
        output = model(IDS)
    # Where the LM head is linear and has no bias, its input can be had back from the logits.
    weight_VD = model.get_output_embeddings().weight
    logits_NV = output.logits.flatten(0, 1).double()
    hidden_DN = torch.linalg.lstsq(weight_VD.double(), logits_NV.T).solution
    expected_BT = (model.value_head.last.weight.double() @ hidden_DN).view_as(IDS).float()
    torch.testing.assert_close(values_of(output), expected_BT, rtol=1e-3, atol=1e-4)
    assert values_of(output).std() > 0.01


def test_the_logits_stay_what_they_were(make_model):
    model = make_model("llama", vocab_size=130)
    with torch.no_grad():
        before_BTV = model(IDS).logits
        assert torch.equal(with_head(model)(IDS).logits, before_BTV)


def test_an_output_with_values_can_still_be_taken_apart(tiny_policy):
    output = tiny_policy(IDS, use_cache=False)
    assert list(output.keys()) == ["logits", "state_values"]
    # ModelOutput keeps a key as an attribute too: "values" would hide the method of that name.
    assert list(output.values())[1] is values_of(output)
    assert len(tree_flatten(output)[0]) == 2


def test_an_untrained_head_says_zero(make_model):
    for hidden in (None, 8):
        model = attach_value_head(make_model("llama", vocab_size=130), hidden=hidden)
        assert (values_of(model(IDS)) == 0).all()


def test_values_follow_the_logits_that_are_kept(tiny_policy):
    with torch.no_grad():
        all_BT, last_BT = (values_of(tiny_policy(IDS, logits_to_keep=k)) for k in (0, 2))
    torch.testing.assert_close(last_BT, all_BT[:, -2:])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_left_padding_changes_no_value(family, make_model):
    model = with_head(make_model(family, vocab_size=130))
    padding = torch.zeros(2, 3, dtype=torch.long)
    mask_BT = torch.cat([padding, torch.ones_like(IDS)], dim=1)
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    # OPT counts its learned positions from the mask.
    positions = {} if family == "opt" else {"position_ids": positions_BT}
    with torch.no_grad():
        padded = model(torch.cat([padding, IDS], dim=1), attention_mask=mask_BT, **positions)
        plain = model(IDS)
    torch.testing.assert_close(values_of(padded)[:, 3:], values_of(plain), rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_trunk_and_head(tiny_policy):
    values_of(tiny_policy(IDS)).sum().backward()
    assert tiny_policy.value_head.last.weight.grad.abs().sum() > 0
    assert tiny_policy.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_the_gradient_is_the_same_with_checkpointing(tiny_policy):
    other = copy.deepcopy(tiny_policy)
    other.gradient_checkpointing_enable()
    for model in (tiny_policy.train(), other.train()):
        output = model(IDS, use_cache=False)
        (values_of(output).pow(2).mean() + output.logits.pow(2).mean()).backward()
    for mine, its in zip(tiny_policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_the_head_is_one_of_the_models_parameters(tiny_policy):
    assert "value_head.last.weight" in dict(tiny_policy.named_parameters())
    assert tiny_policy.to(torch.float64).value_head.last.weight.dtype == torch.float64


def test_values_are_float32_whatever_surrounds_the_head(tiny_policy):
    exact_BT = values_of(tiny_policy(IDS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast_BT = values_of(tiny_policy(IDS))
    low_BT = values_of(tiny_policy.to(torch.bfloat16)(IDS))
    for values_BT in (autocast_BT, low_BT):
        assert values_BT.dtype == torch.float32
        torch.testing.assert_close(values_BT, exact_BT, rtol=0.1, atol=0.05)


def test_a_copy_is_independent(tiny_policy):
    values_of(tiny_policy(IDS)).sum()  # what a forward leaves behind must not be in the way
    other = copy.deepcopy(tiny_policy)
    with torch.no_grad():
        before_BT = values_of(tiny_policy(IDS))
        other.value_head.last.bias += 1.0
        torch.testing.assert_close(values_of(other(IDS)), before_BT + 1.0)
        assert torch.equal(values_of(tiny_policy(IDS)), before_BT)


def test_a_copy_can_be_made_after_a_forward_that_failed(tiny_policy):
    tiny_policy.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_policy(IDS)
    tiny_policy.lm_head._forward_hooks.clear()
    values_of(copy.deepcopy(tiny_policy)(IDS))


def test_attaching_twice_gives_one_head_and_one_set_of_hooks(tiny_policy):
    head = tiny_policy.value_head
    attach_value_head(tiny_policy)
    assert tiny_policy.value_head is head
    assert len(tiny_policy._forward_hooks) == 1
    assert len(tiny_policy.lm_head._forward_pre_hooks) == 1


def test_a_replaced_forward_keeps_the_values(tiny_policy):
    expected_BT = values_of(tiny_policy(IDS))
    original = tiny_policy.forward
    tiny_policy.forward = lambda *args, **kwargs: original(*args, **kwargs)
    torch.testing.assert_close(values_of(tiny_policy(IDS)), expected_BT)


def test_a_loss_that_goes_round_the_lm_head_has_the_same_values(tiny_policy):
    expected_BT = values_of(tiny_policy(IDS))
    trunk = tiny_policy.model
    tiny_policy.forward = lambda ids: CausalLMOutput(loss=trunk(ids).last_hidden_state.sum())
    torch.testing.assert_close(values_of(tiny_policy(IDS)), expected_BT)


def test_values_of_another_forward_are_never_taken(tiny_policy):
    tiny_policy(IDS)
    tiny_policy.forward = lambda ids: CausalLMOutput(loss=torch.zeros(()))
    with pytest.raises(ValueError, match=r"CausalLMOutput has no values; call attach_value_head"):
        values_of(tiny_policy(IDS[:1]))


def test_calling_the_lm_head_alone_leaves_nothing_behind(tiny_policy):
    tiny_policy.lm_head(torch.randn(2, 3, 32, requires_grad=True) * 1)
    copy.deepcopy(tiny_policy)  # a tensor with a graph could not be copied


def test_generation_is_not_disturbed(tiny_policy, make_model):
    plain = make_model("llama", vocab_size=130)
    before = plain.generate(IDS, max_new_tokens=5, do_sample=False)
    after = with_head(plain).generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(before, after)


def test_lora_around_the_policy_has_values_and_trains_the_head(tiny_policy):
    expected_BT = values_of(tiny_policy(IDS)).detach()
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["value_head"])
    wrapped = attach_value_head(get_peft_model(tiny_policy, lora))
    values_BT = values_of(wrapped(input_ids=IDS))
    torch.testing.assert_close(values_BT, expected_BT)  # LoRA starts as the identity
    values_BT.sum().backward()
    trained = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    assert any("value_head.modules_to_save" in name for name in trained)
    assert any("lora_B" in name for name in trained)
    merged = wrapped.merge_and_unload()
    assert isinstance(merged.value_head, ValueHead)
    torch.testing.assert_close(values_of(merged(IDS)), expected_BT)


def test_distributed_data_parallel_reduces_the_head_too(tiny_policy, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(tiny_policy)
        for _ in range(2):  # the second step fails if the first left a gradient out
            output = wrapped(IDS)
            (values_of(output).mean() + output.logits.mean()).backward()
        # The reducer goes before its group: as the group's last owner it would wait for the
        # group's threads and hold the interpreter lock that they need.
        del wrapped, output
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()
    assert tiny_policy.value_head.last.weight.grad.abs().sum() > 0


def test_a_model_without_lm_head_is_refused(tiny_policy):
    with pytest.raises(ValueError, match=r"Qwen3Model has no output embeddings.*AutoModelFor"):
        attach_value_head(tiny_policy.model)


def test_has_value_head_tells(tiny_policy, make_model):
    assert has_value_head(tiny_policy)
    assert not has_value_head(make_model("llama", vocab_size=130))


def test_an_mlp_head_learns_what_a_linear_one_cannot():
    # |x| is no linear function of x.
    torch.manual_seed(0)
    x_BTD = torch.linspace(-1, 1, 64).reshape(1, 64, 1)
    target_BT = x_BTD.squeeze(-1).abs()
    losses = []
    for hidden in (None, 8):
        head = ValueHead(1, hidden=hidden)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(150):
            loss = (head(x_BTD) - target_BT).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < 0.2 * losses[0]
