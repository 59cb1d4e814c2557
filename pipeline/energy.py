"""Measure energy and CO2 of a training with codecarbon, offline.

codecarbon reads the meters of CPU (RAPL) and GPU (NVML). Where a machine shows none, as in most
virtual machines, it takes the rated power of the processor and its load: an estimate. Memory is
always estimated. CO2 follows from the mix of the stated country, or from a stated intensity.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.runtime import write_json

if TYPE_CHECKING:
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output import EmissionsData

ENERGY_FILE = "energy.json"
INSTALL = "pip install 'thinkhead[energy]'"


class EnergyPart(TypedDict):
    """What one process run of a training used: kWh, kg of CO2 equivalents, seconds."""

    energy_kwh: float
    co2_kg: float
    seconds: float
    cpu_kwh: float
    gpu_kwh: float
    ram_kwh: float
    cpu: str
    gpu: str
    codecarbon: str


class Energy(TypedDict):
    """Content of ENERGY_FILE: the sums of its parts, and where the electricity came from."""

    country: str
    intensity_g_per_kwh: float | None
    parts: list[EnergyPart]
    energy_kwh: float
    co2_kg: float
    seconds: float


@contextmanager
def measured_energy(
    folder: Path, country: str | None, intensity: float | None = None, *, resumed: bool = False
) -> Iterator[None]:
    """Context of a training whose energy is written to ENERGY_FILE; nothing where country is None.

    A resumed run adds a part to those before it, and an interrupted one writes what it used.

    Args:
        country: ISO 3166 alpha-3 code of the country whose electricity is used, such as DEU.
        intensity: g of CO2 equivalents per kWh; default: the mix of the country.
        resumed: keep the parts that the file already has.

    Raises:
        ImportError: codecarbon is not installed.
        ValueError: it does not know the country.
    """
    if country is None:
        yield
        return
    path = folder / ENERGY_FILE
    parts = json.loads(path.read_text())["parts"] if resumed and path.is_file() else []
    tracker = _tracker(country, intensity)
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        parts.append(_part(tracker.final_emissions_data))
        write_json(path, energy_of_parts(parts, country, intensity))


def check_energy(country: str | None, intensity: float | None) -> None:
    """Raise ImportError without codecarbon, ValueError for a country that it does not know."""
    if country is None:
        if intensity is not None:
            raise ValueError(
                f"energy_intensity={intensity} is the intensity of a country's electricity; give "
                "energy_country as well, such as DEU"
            )
        return
    if find_spec("codecarbon") is None:
        raise ImportError(
            f"energy_country={country} measures with codecarbon, which is not installed: {INSTALL}"
        )
    from codecarbon.core.emissions import DataSource

    known = DataSource().get_global_energy_mix_data()
    if country not in known:
        raise ValueError(
            f"energy_country={country!r} is no country that codecarbon knows; give its ISO 3166 "
            "alpha-3 code, such as DEU or USA"
        )


def energy_of_parts(parts: list[EnergyPart], country: str, intensity: float | None) -> Energy:
    """The content of ENERGY_FILE."""
    return {
        "country": country,
        "intensity_g_per_kwh": intensity,
        "parts": parts,
        "energy_kwh": sum(part["energy_kwh"] for part in parts),
        "co2_kg": sum(part["co2_kg"] for part in parts),
        "seconds": sum(part["seconds"] for part in parts),
    }


def _tracker(country: str, intensity: float | None) -> "OfflineEmissionsTracker":
    check_energy(country, intensity)
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    return OfflineEmissionsTracker(
        country_iso_code=country,
        save_to_file=False,
        log_level="error",
        allow_multiple_runs=True,
        tracking_mode="machine",
        force_carbon_intensity_g_co2e_kwh=intensity,
    )


def _part(data: "EmissionsData") -> EnergyPart:
    return {
        "energy_kwh": data.energy_consumed,
        "co2_kg": data.emissions,
        "seconds": data.duration,
        "cpu_kwh": data.cpu_energy,
        "gpu_kwh": data.gpu_energy,
        "ram_kwh": data.ram_energy,
        "cpu": data.cpu_model,
        "gpu": data.gpu_model,
        "codecarbon": data.codecarbon_version,
    }
