"""The program in an answer: chosen by what it says, however it is fenced."""

import time

import pytest

from pipeline.grading.program_extraction import MAX_CHARACTERS, defines, program_text
from pipeline.grading.programs import grade_program

F = "def f(x):\n    return 2 * x\n"
CALLS = {"kind": "calls", "function": "f", "inputs": [[2], [-3]], "outputs": [4, -6]}
READS = "n = int(input())\nprint(2 * n)\n"
STDIO = {"kind": "stdio", "inputs": ["2\n", "7\n"], "outputs": ["4\n", "14\n"]}
USE = "```python\nprint(f(2))\n```\n"
OUTPUT = "```text\n4\n```\n"


def indented(text: str, by: str = "    ") -> str:
    return "".join(by + line for line in text.splitlines(keepends=True))


FENCED = {
    "closed": "Here:\n```python\n{p}```\nDone.",
    "unclosed": "Here:\n```python\n{p}",
    "a space before the language": "``` python\n{p}```\n",
    "capitals": "```Python\n{p}```",
    "py": "```py\n{p}```",
    "python3": "```python3\n{p}```",
    "no language": "```\n{p}```",
    "attributes": "```{{.python .numberLines}}\n{p}```",
    "a title": "```python title=a.py\n{p}```",
    "four backticks": "````python\n{p}````",
    "tildes": "~~~python\n{p}~~~\n",
    "tildes, unclosed": "~~~\n{p}",
    "behind text": "The program: ```python\n{p}```",
    "closed behind code": "```python\n{p}    ```",
    "spaces behind the fences": "```python  \n{p}```  \n",
    "a usage block behind": "```python\n{p}```\nUse it so:\n" + USE,
    "an output block behind": "```python\n{p}```\nIt prints:\n" + OUTPUT,
    "an output block without a language": "```python\n{p}```\n```\n4\n```",
    "a shell block behind": "```python\n{p}```\n```bash\npython a.py\n```",
    "usage, then output, unclosed": "```python\n{p}```\n" + USE + "```\n4\n",
    "an earlier attempt": "```python\ndef f(x):\n    return x\nprint(int(input()))\n```\nNo:\n"
    "```python\n{p}```",
    "a broken attempt behind": "```python\n{p}```\n```python\ndef f(x:\n```",
    "no fence": "{p}",
    "text around, no fence": "The program is\n\n{p}\nand that is all of it.",
}


@pytest.mark.parametrize("program", [(F, CALLS), (READS, STDIO)], ids=["calls", "stdio"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("fenced", FENCED.values(), ids=FENCED)
def test_the_program_is_found(fenced, newline, program):
    text, test = program
    found = program_text(fenced.format(p=text).replace("\n", newline), test)
    assert found.strip() == text.strip()


@pytest.mark.parametrize("by", ["   ", "\t", "> ", "        "])
@pytest.mark.parametrize("closing", ["```", ""])
def test_the_indentation_of_a_fence_is_removed_from_the_program(by, closing):
    answer = f"1. So:\n\n{indented(f'```python{chr(10)}{F}{closing}', by)}"
    assert program_text(answer, CALLS).strip() == F.strip()


def test_a_fence_inside_a_string_does_not_end_the_program():
    program = 'def f(x):\n    """\n    ```\n    f(2)\n    ```\n    """\n    return 2 * x\n'
    assert program_text(f"```python\n{program}```\n{USE}", CALLS) == program


def test_a_block_without_the_function_is_taken_where_no_other_has_it():
    assert program_text("```python\nprint(4)\n```", STDIO) == "print(4)\n"
    assert program_text(USE, CALLS) == "print(f(2))\n"


def test_a_program_without_input_is_distinguished_from_its_output():
    test = {"kind": "stdio", "inputs": [""], "outputs": ["4\n"]}
    assert program_text("```\nprint(4)\n```\n```\n4\n```", test) == "print(4)\n"


def test_a_body_keeps_its_indentation_for_the_head_that_is_given():
    test = CALLS | {"kind": "asserts", "prelude": "def f(x):\n"}
    assert program_text("```python\n    return 2 * x\n```", test) == "    return 2 * x\n"


@pytest.mark.parametrize(
    "program",
    ["f = lambda x: x", "class Solution:\n    def f(self, x): pass", "from m import g as f",
     "try:\n    def f(): pass\nexcept Exception: pass", "async def f(): pass", "f: object = print"],
)  # fmt: skip
def test_a_function_may_be_defined_in_many_ways(program):
    assert defines(program, "f") and not defines(program, "h")


def test_a_name_that_is_only_used_is_not_defined():
    assert not defines("print(f(2))  # def f", "f") and not defines("def ff(): pass", "f")


def test_a_usage_block_after_the_program_is_ignored():
    assert grade_program(f"```python\n{F}```\n{USE}{OUTPUT}", CALLS).right is True
    assert grade_program(f"``` python\r\n{READS}", STDIO).right is True


HOSTILE = {
    "fences": "```\n",
    "tildes": "~~~\n",
    "longer and shorter fences": "````\n```\n",
    "backticks": "`",
    "spaces": " ",
    "open blocks": "```python\ndef f(:\n",
    "brackets": "(",
    "prose": "if you want (",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_takes_time_in_proportion_to_its_length(piece):
    def seconds(characters: int) -> float:
        text = piece * (characters // len(piece))
        begin = time.process_time()
        program_text(text, CALLS)
        return time.process_time() - begin

    small, large = (min(seconds(n) for _ in range(3)) for n in (8_000, 32_000))
    assert large < 10 * small + 0.1


def test_text_beyond_the_limit_is_no_program():
    assert program_text("#" * (MAX_CHARACTERS + 1)) == ""
