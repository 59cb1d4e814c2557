"""Energy of a training: measured, added up over resumed parts, and in the model card."""

import json
import sys

import pytest

from pipeline import energy
from pipeline.config import StageConfig
from pipeline.energy import ENERGY_FILE, check_energy, measured_energy
from pipeline.hub.card import model_card
from pipeline.hub.facts import read_facts
from pipeline.model import save_policy
from pipeline.runtime import write_json
from stages import sft
from tests.test_hub_publish import RUN
from tests.test_stages import SFT

PART = {"energy_kwh": 0.5, "co2_kg": 0.19, "seconds": 1800.0, "cpu": "EPYC", "gpu": "H100"}


class Tracker:
    """What is used of codecarbon's tracker."""

    energy_consumed, emissions, duration = 0.25, 0.1, 60.0
    cpu_energy, gpu_energy, ram_energy = 0.2, 0.0, 0.05
    cpu_model, gpu_model, codecarbon_version = "EPYC", "", "3.3.2"

    def __init__(self) -> None:
        self.final_emissions_data = self

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        assert self.running


@pytest.fixture
def tracker(monkeypatch):
    monkeypatch.setattr(energy, "_tracker", lambda country, intensity: Tracker())


@pytest.fixture
def checkpoint(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path)
    write_json(tmp_path / "run.json", RUN)
    return tmp_path


def test_without_a_country_nothing_is_measured(tmp_path):
    with measured_energy(tmp_path, None):
        pass
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_adds_to_the_parts_before_it_and_a_new_one_does_not(tmp_path, tracker):
    for resumed, parts in ((False, 1), (True, 2), (True, 3), (False, 1)):
        with measured_energy(tmp_path, "DEU", resumed=resumed):
            pass
        content = json.loads((tmp_path / ENERGY_FILE).read_text())
        assert len(content["parts"]) == parts
        assert content["energy_kwh"] == pytest.approx(0.25 * parts)
        assert content["co2_kg"] == pytest.approx(0.1 * parts)


def test_an_interrupted_training_writes_what_it_used(tmp_path, tracker):
    with pytest.raises(KeyboardInterrupt), measured_energy(tmp_path, "DEU"):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / ENERGY_FILE).read_text())["seconds"] == 60.0


def test_the_card_has_the_energy_of_the_stages_that_were_measured(checkpoint):
    write_json(checkpoint / ENERGY_FILE, energy.energy_of_parts([PART], "DEU", None))
    card = model_card(read_facts(checkpoint), "user/thinker")
    assert "| 1. PPO | DEU | 0.5 | 0.5 | 190 | EPYC, H100 |" in card
    assert "Not measured" not in card


def test_without_a_measurement_the_card_says_how_to_get_one(checkpoint):
    card = model_card(read_facts(checkpoint), "user/thinker")
    section = card.partition("## Energy and CO2")[2].partition("##")[0]
    assert "Not measured" in section and "--energy_country DEU" in section
    assert "pip install 'thinkhead[energy]'" in section


def test_an_intensity_needs_a_country():
    with pytest.raises(ValueError, match="give energy_country as well"):
        check_energy(None, 300.0)
    assert StageConfig().energy_country is None


def test_without_codecarbon_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'thinkhead\[energy\]'"):
        check_energy("DEU", None)


def test_codecarbon_measures_a_training_and_its_intensity_is_the_stated_one(tmp_path):
    pytest.importorskip("codecarbon")
    with pytest.raises(ValueError, match="ISO 3166"):
        check_energy("XYZ", None)
    (tmp_path / "sft.yaml").write_text(SFT)
    out = tmp_path / "sft"
    arguments = ["--config", str(tmp_path / "sft.yaml"), "--output_dir", str(out)]
    sft.main([*arguments, "--energy_country", "FRA", "--energy_intensity", "100"])
    content = json.loads((out / ENERGY_FILE).read_text())
    assert content["energy_kwh"] > 0 and content["seconds"] > 0
    assert content["co2_kg"] == pytest.approx(0.1 * content["energy_kwh"])
    assert "| 1. SFT | FRA |" in model_card(read_facts(out), "user/thinker")
    assert "codecarbon" in sys.modules
