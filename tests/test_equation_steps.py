from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import DataConfig
from pipeline.data.equation_steps import single_operations, with_single_operations
from pipeline.grading.arithmetic import equations_in
from pipeline.records import Problem
from stages.training_problems import problem_stream, training_problems


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("(13+17)-15=15", ["13+17=30", "30-15=15"]),
        ("6*(4+4)=48", ["4+4=8", "6*8=48"]),
        ("2+3*4=14", ["3*4=12", "2+12=14"]),
        ("1/4*200=50", ["1/4=0.25", "0.25*200=50"]),
        ("(1+2)*(3+4)=21", ["1+2=3", "3+4=7", "3*7=21"]),
        ("100*.2*3=60.00", ["100*0.2=20", "20*3=60.00"]),
    ],
)
def test_an_equation_of_several_operations_becomes_one_equation_an_operation(line, steps):
    assert single_operations(line).split("\n") == steps


@pytest.mark.parametrize(
    "line",
    [
        "13+17=30",
        "70=70",
        "(13+17)-15=16",  # does not hold
        "100/3*3=100",  # 33.333... has no finite decimals
        "3-5+10=8",  # -2 on the way
        "2+3+x=9",
        "$5+3+2=$10",
        "2**9**9+1=3",
        "5/0+1+1=2",
        "1+" * 150 + "1=151",  # longer than what is parsed
        "So 2+3+4 apples.",
        "",
    ],
)
def test_any_other_line_stays_as_it_is(line):
    assert single_operations(line) == line


def test_lines_of_words_between_stay_in_their_place():
    thought = "First the boys:\n(2+3)*4=20\nThat is all."
    assert single_operations(thought) == "First the boys:\n2+3=5\n5*4=20\nThat is all."


def test_every_made_equation_has_one_operation_and_holds():
    made = single_operations("((8+4)*5-10)/2=25\n(7+8)*2*3=90")
    equations = list(equations_in(made))
    assert len(equations) == 4 + 3
    assert all(len(each.operators) == 1 and each.holds for each in equations)


@pytest.fixture
def own_rows(tmp_path: Path) -> str:
    path = tmp_path / "own.jsonl"
    row = '{"question": "A has 2 and 3, four times?", "thought": "(2+3)*4=20", "answer": "20"}'
    path.write_text(row + "\n")
    return str(path)


@pytest.mark.parametrize("split_up", [False, True])
def test_the_option_rewrites_thoughts_of_own_data_read_whole_or_as_a_stream(own_rows, split_up):
    data = DataConfig(dataset=own_rows, single_operations=split_up, overlap="allow")
    expected = "2+3=5\n5*4=20" if split_up else "(2+3)*4=20"
    assert [p.thought for p in training_problems(data, 0)] == [expected]
    assert [p.thought for p in problem_stream(data, 0)()] == [expected]


def test_generated_problems_in_shares_can_be_a_part_of_a_mixture(own_rows):
    data = DataConfig(dataset=f"nano=3,{own_rows}=1", shares="story2=1", size=4, overlap="allow")
    problems = training_problems(data, 0)
    assert sorted(p.level for p in problems if p.source.startswith("nano")) == ["story2"] * 3
    assert len(problems) == 4


def test_a_thought_with_untrained_parts_keeps_its_text_and_their_places():
    problem = Problem(question="?", answer="20", thought="(2+3)*4=20", untrained_spans=((0, 8),))
    assert with_single_operations(problem) == problem
    rewritten = with_single_operations(replace(problem, untrained_spans=()))
    assert rewritten.thought == "2+3=5\n5*4=20"


def test_rows_of_equations_do_not_count_as_self_corrections(capsys):
    data = DataConfig(
        dataset="nano", shares="practice=1", size=8, self_correction_share=1.0, overlap="allow"
    )
    training_problems(data, 0)
    assert "0 of 8 thoughts contain a self-correction" in capsys.readouterr().out


def test_shares_without_nano_in_the_mixture_are_refused():
    with pytest.raises(ValueError, match="shares"):
        DataConfig(dataset="gsm8k=1,asdiv=2", shares="story2=1")
