"""Columns of the user's own data: which one has the question, the answer and so on.

    question, answer       the usual columns; the answer may hold its solution: text before
                           `#### 42`, around `\\boxed{42}`, or in `<think>...</think>`
    thought                the worked solution
    choices                options: a list of texts, or {"label": [...], "text": [...]}
    tests                  assert statements that the program of an answer must pass
    messages               a conversation; its last assistant turn is the answer
    prompt, completion     TRL's columns, texts or lists of messages
    text                   a text without a question, which only pretraining takes

`question=instruction+input` joins columns, `answer=reward_model.ground_truth` reads in a record.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

Columns = Mapping[str, str]  # {role: column, or columns joined by +}

# Usual names of each role, the likeliest first.
USUAL = {
    "messages": ("messages", "conversations", "conversation"),
    "question": ("question", "problem", "instruction", "prompt", "query", "input"),
    "answer": (
        *("answer", "final_answer", "ground_truth", "target", "label", "output", "solution"),
        *("response", "completion"),
    ),
    "thought": (
        *("thought", "thinking", "reasoning", "reasoning_content", "rationale", "cot"),
        *("chain_of_thought", "solution", "explanation"),
    ),
    "choices": ("choices", "options"),
    "tests": ("tests", "test_list"),
    "level": ("level", "difficulty"),
    "id": ("id", "unique_id"),
    "text": ("text", "content", "document"),
}
ROLES = (*USUAL, "prompt", "completion", "check")
ASKING = ("messages", "question", "prompt", "choices", "level", "id")  # roles without an answer


def parse_columns(text: str | None) -> dict[str, str]:
    """{role: column} of "question=frage,answer=antwort", or of a JSON object with such entries.

    Raises:
        ValueError: the text has another form, or an unknown or repeated role.

    >>> parse_columns("question=frage, answer=antwort")
    {'question': 'frage', 'answer': 'antwort'}
    """
    if not text:
        return {}
    shape = "it must look like 'question=frage,answer=antwort'"
    if text.lstrip().startswith("{"):
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError:
            raise ValueError(f"columns={text!r} is not valid JSON; {shape}") from None
    else:
        pairs = [item.partition("=") for item in text.split(",")]
        parsed = {role.strip(): column.strip() for role, _, column in pairs}
        if len(parsed) < len(pairs):
            raise ValueError(f"columns={text!r} names a role twice; {shape}")
    for role, column in parsed.items():
        if role not in ROLES:
            close = get_close_matches(role, ROLES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"roles are {', '.join(ROLES)}"
            raise ValueError(f"columns={text!r}: {role!r} is no role; {hint}")
        if not isinstance(column, str) or not column:
            raise ValueError(f"columns={text!r} gives {role} no column; {shape}")
    return parsed


def find_columns(
    given: Columns,
    names: Sequence[str],
    origin: str,
    *,
    texts: bool = False,
    answers: bool = True,
) -> dict[str, str]:
    """{role: column}: the given ones, and the usual names for what they leave open.

    With `texts` a row may be a text: where that column is given, or where there is no question with
    an answer. Without `answers` a question is enough, and only what is asked is found.

    Raises:
        ValueError: a given column is not among `names`, or nothing has a question or an answer.
    """
    there = ", ".join(names)
    for role, column in given.items():
        for part in column_parts(column, names):
            if part not in names and part.partition(".")[0] not in names:
                close = get_close_matches(part, names, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(
                    f"{origin}: {role}={column} in columns, but there is no column {part!r}; {hint}"
                    f"it has: {there}"
                )
    if "text" in given:
        if texts:
            return {"text": given["text"]}
        raise ValueError(
            f"{origin}: text={given['text']} in columns is for stages.pretrain; this command needs "
            "--columns question=COLUMN,answer=COLUMN"
        )
    found = dict(given)
    if not {"question", "messages", "prompt"} & set(found):
        if {"prompt", "completion"} <= set(names) and "answer" not in found:
            found |= {"prompt": "prompt", "completion": "completion"}
        elif "answer" not in found:
            found |= _usual("messages", names, found)
    if not {"messages", "completion"} & set(found):
        if "prompt" in found:
            found["question"] = found.pop("prompt")
        for role in ("question", "answer", "thought", "choices", "tests"):
            found |= {} if role in found else _usual(role, names, found)
        if "question" not in given and {"instruction", "input"} <= set(names):
            found["question"] = "instruction+input"  # Alpaca's: a task and its text
    for role in ("level", "id"):
        found |= {} if role in found else _usual(role, names, found)
    asks = {"question", "messages", "prompt"} & set(found)
    tells = {"answer", "tests", "check", "messages", "completion"} & set(found)
    if not answers and asks:
        return {role: found[role] for role in ASKING if role in found}
    if not asks or not tells:
        text = _usual("text", names, {}) if texts and not given else {}
        if text:
            return text
        missing = "an answer" if asks else "a question"
        raise ValueError(
            f"{origin}: no column is known to have {missing}; it has: {there}; name them with "
            f"--columns question=COLUMN{',answer=COLUMN' * answers}{' or text=COLUMN' * texts}"
        )
    return {role: found[role] for role in ROLES if role in found}


def _usual(role: str, names: Sequence[str], found: Columns) -> dict[str, str]:
    taken = {part for column in found.values() for part in column_parts(column, names)}
    column = next((c for c in USUAL[role] if c in names and c not in taken), None)
    return {role: column} if column else {}


def column_parts(column: str, names: Collection[str]) -> list[str]:
    """The columns that are joined, or the one column.

    >>> column_parts("task+text", ["task", "text"]), column_parts("a+b", ["a+b"])
    (['task', 'text'], ['a+b'])
    """
    return [column] if column in names else [part.strip() for part in column.split("+")]
