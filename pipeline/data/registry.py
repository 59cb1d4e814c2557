"""The data sets by name: repository on the Hub, local folder, and converter of rows.

A local copy is FOLDER/SPLIT.jsonl.gz (or .jsonl) under the data root. One split here may be several
parts on the Hub: MATH has a configuration for each subject, BIG-Bench Hard one for each task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.data import converters, programs
from pipeline.data.converters import Row
from pipeline.records import Problem

# {split here: pairs (configuration or None, split) on the Hub}
HubParts = Mapping[str, tuple[tuple[str | None, str], ...]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set.

    >>> Source(folder="mine", convert=converters.gsm8k, splits=("train",)).hub
    ''
    """

    folder: str
    convert: Callable[[Row], Problem]
    splits: tuple[str, ...]
    hub: str = ""  # "" where the Hub has no copy with these fields
    hub_parts: HubParts = field(default_factory=dict)
    held_out: tuple[str, ...] = ("validation", "test", "all")  # for evaluation, never for training
    hub_only: bool = False  # its authors ask for no public copies, so no local file is expected
    # The fields of the question, where the only split "all" is divided into "train" and "test" (a
    # fifth) by a hash of their words; questions that differ in their numbers only stay together.
    divided_by: tuple[str, ...] = ()


def hub_parts(*splits: str, config: str | None = None) -> HubParts:
    """The parts of splits that have the same names on the Hub.

    >>> hub_parts("train", "test", config="main")
    {'train': (('main', 'train'),), 'test': (('main', 'test'),)}
    """
    return {split: ((config, split),) for split in splits}


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

BBH_TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)

BBQ_CATEGORIES = (
    "Age",
    "Disability_status",
    "Gender_identity",
    "Nationality",
    "Physical_appearance",
    "Race_ethnicity",
    "Race_x_SES",
    "Race_x_gender",
    "Religion",
    "SES",
    "Sexual_orientation",
)

KNIGHTS_SIZES = range(3, 8)  # people on the island

SOURCES: dict[str, Source] = {
    "gsm8k": Source(
        folder="gsm8k",
        convert=converters.gsm8k,
        splits=("train", "test"),
        hub="openai/gsm8k",
        hub_parts=hub_parts("train", "test", config="main"),
    ),
    "gsm8k_equations": Source(
        folder="gsm8k",
        convert=converters.gsm8k_equations,
        splits=("train", "test"),
        hub="openai/gsm8k",
        hub_parts=hub_parts("train", "test", config="main"),
    ),
    "math": Source(
        folder="math",
        convert=converters.competition_math,
        splits=("train", "test"),
        hub="EleutherAI/hendrycks_math",
        hub_parts={
            split: tuple((subject, split) for subject in MATH_SUBJECTS)
            for split in ("train", "test")
        },
    ),
    "math500": Source(
        folder="math500",
        convert=converters.answered_math,
        splits=("test",),
        hub="HuggingFaceH4/MATH-500",
        hub_parts=hub_parts("test"),
    ),
    "aime24": Source(
        folder="aime24",
        convert=converters.answered_math,
        splits=("test",),
        hub="HuggingFaceH4/aime_2024",
        hub_parts={"test": ((None, "train"),)},
    ),
    "amc23": Source(
        folder="amc23",
        convert=converters.answered_math,
        splits=("test",),
        hub="math-ai/amc23",
        hub_parts=hub_parts("test"),
    ),
    "asdiv": Source(
        folder="asdiv",
        convert=converters.asdiv,
        splits=("all", "train", "test"),
        divided_by=("body", "question"),
        hub="EleutherAI/asdiv",
        hub_parts={"all": ((None, "validation"),)},
    ),
    "multiarith": Source(
        folder="multiarith",
        convert=converters.multiarith,
        splits=("all", "train", "test"),
        divided_by=("question",),
        hub="ChilleD/MultiArith",
        hub_parts={"all": ((None, "train"), (None, "test"))},
    ),
    "mawps": Source(
        folder="mawps",
        convert=converters.mawps,
        splits=("all", "train", "test"),
        divided_by=("input",),
    ),
    "aqua_rat": Source(
        folder="aqua_rat",
        convert=converters.aqua_rat,
        splits=("train", "validation", "test"),
        hub="deepmind/aqua_rat",
        hub_parts=hub_parts("train", "validation", "test", config="raw"),
    ),
    "arc_easy": Source(
        folder="arc_easy",
        convert=converters.labelled_choices,
        splits=("train", "validation", "test"),
        hub="allenai/ai2_arc",
        hub_parts=hub_parts("train", "validation", "test", config="ARC-Easy"),
    ),
    "arc_challenge": Source(
        folder="arc_challenge",
        convert=converters.labelled_choices,
        splits=("train", "validation", "test"),
        hub="allenai/ai2_arc",
        hub_parts=hub_parts("train", "validation", "test", config="ARC-Challenge"),
    ),
    # The Hub has all 1,000 labelled questions, including the official test questions, in one split
    # "train". The name "labelled" avoids training on it by mistake.
    "pubmedqa": Source(
        folder="pubmedqa",
        convert=converters.pubmedqa,
        splits=("train", "test", "labelled"),
        hub="qiaojin/PubMedQA",
        hub_parts={"labelled": (("pqa_labeled", "train"),)},
    ),
    "commonsense_qa": Source(
        folder="commonsense_qa",
        convert=converters.labelled_choices,
        splits=("train", "validation"),
        hub="tau/commonsense_qa",
        hub_parts=hub_parts("train", "validation"),
    ),
    "prosqa": Source(folder="prosqa", convert=converters.prosqa, splits=("validation", "test")),
    "knights_knaves": Source(
        folder="knights_knaves",
        convert=converters.knights_knaves,
        splits=("train", "test"),
        hub="K-and-K/knights-and-knaves",
        hub_parts={
            split: tuple((split, f"{people}ppl") for people in KNIGHTS_SIZES)
            for split in ("train", "test")
        },
    ),
    "bbh": Source(
        folder="bbh",
        convert=converters.bbh,
        splits=("test",),
        hub="lukaemon/bbh",
        hub_parts={"test": tuple((task, "test") for task in BBH_TASKS)},
    ),
    "gpqa_diamond": Source(
        folder="gpqa_diamond",
        convert=converters.gpqa,
        splits=("test",),
        hub="Idavidrein/gpqa",
        hub_parts={"test": (("gpqa_diamond", "train"),)},
        hub_only=True,
    ),
    "bbq": Source(
        folder="bbq",
        convert=converters.bbq,
        splits=("test",),
        hub="heegyu/bbq",
        hub_parts={"test": tuple((category, "test") for category in BBQ_CATEGORIES)},
    ),
    "humaneval": Source(
        folder="humaneval",
        convert=programs.humaneval,
        splits=("test",),
        hub="openai/openai_humaneval",
        hub_parts=hub_parts("test"),
    ),
    "mbpp": Source(
        folder="mbpp",
        convert=programs.mbpp,
        splits=("train", "validation", "test", "prompt"),
        hub="google-research-datasets/mbpp",
        hub_parts=hub_parts("train", "validation", "test", "prompt", config="full"),
    ),
    "apps": Source(
        folder="apps",
        convert=programs.apps,
        splits=("train", "test"),
        hub="codeparrot/apps",
        hub_parts=hub_parts("train", "test", config="all"),
    ),
    # Five problems of APPS, enough to see both kinds of tests.
    "apps_sample": Source(folder="apps_sample", convert=programs.apps, splits=("train",)),
    "codeforces": Source(
        folder="codeforces",
        convert=programs.codeforces,
        splits=("train", "test"),
        hub="open-r1/codeforces",
        hub_parts=hub_parts("train", "test", config="default"),
    ),
}
