"""accelerate asks several times in every training step whether peft is installed."""

import pytest
import torch
from accelerate.utils import imports, modeling, other

from pipeline.training.library_checks import cache_package_checks


def test_the_metadata_of_a_package_are_read_once(monkeypatch):
    model = torch.nn.Linear(1, 1)
    found = modeling.is_peft_model(model), other.extract_model_from_parallel(model)
    monkeypatch.setattr(imports, "_is_package_available", lambda *names: pytest.fail(str(names)))
    assert (modeling.is_peft_model(model), other.extract_model_from_parallel(model)) == found
    assert found == (False, model) and modeling.is_peft_available() is True


def test_a_second_call_changes_nothing():
    before = modeling.is_peft_available, other.is_deepspeed_available
    cache_package_checks()
    assert (modeling.is_peft_available, other.is_deepspeed_available) == before
