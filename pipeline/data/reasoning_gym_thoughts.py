"""Worked thoughts for five reasoning-gym tasks, and a checker of every line.

A thought is generated from the puzzle. `check_thought` needs only the question, so it also finds
wrong or invented steps in thoughts of a model. One step a line:

    caesar_cipher    shift 3: KHOOR -> HELLO      letters moved back by the shift; tried on one
                     word, shift by shift, until it reads as English, then on every word
    emoji_mystery    U+E0158 -> 104 -> h          a hidden character, its byte, its letter
    gcd              780 = 1 * 461 + 319          Euclid
    letter_counting  hundred: 1, total 1          a word, its count, the running total
    spell_backward   a, then i: ia                one more letter, in front
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Metadata = Mapping[str, Any]


def caesar_thought(question: str, metadata: Metadata) -> str:
    """Shifts of the longest word up to the right one, then every word with that shift."""
    words = _ciphertext(question).split()
    longest, rotation = max(words, key=len), metadata["rotation"]
    tries = [f"shift {k}: {longest} -> {shifted(longest, k)}" for k in range(1, rotation + 1)]
    rest = [f"shift {rotation}: {word} -> {shifted(word, rotation)}" for word in words]
    return "\n".join([*tries, f"{shifted(longest, rotation)} is a word.", *rest])


def emoji_thought(question: str, metadata: Metadata) -> str:
    """Each hidden character with its byte and its letter; "part" for a byte of a longer one."""
    lines = [
        f"U+{ord(sign):X} -> {byte} -> {chr(byte) if byte < 128 else 'part'}"
        for sign, byte in _hidden(question)
    ]
    return "\n".join(lines)


def gcd_thought(question: str, metadata: Metadata) -> str:
    """Euclid's algorithm on the first two numbers, then on their divisor and the next number."""
    first, *others = _gcd_numbers(question)
    lines = []
    for number in others:
        a, b = max(first, number), min(first, number)
        while b:
            lines.append(f"{a} = {a // b} * {b} + {a % b}")
            a, b = b, a % b
        first = a
    return "\n".join([*lines, f"The last divisor is {first}."])


def letter_thought(question: str, metadata: Metadata) -> str:
    """Each word with its count of the letter and the running total."""
    letter, words = _letter_and_words(question)
    lines, total = [], 0
    for word in words:
        count = word.lower().count(letter.lower())
        total += count
        lines.append(f"{word}: {count}, total {total}")
    return "\n".join(lines)


def backward_thought(question: str, metadata: Metadata) -> str:
    """The reversed word, built up letter by letter."""
    word, lines = _word(question), []
    for i in range(1, len(word)):
        lines.append(f"{word[:i][::-1]}, then {word[i]}: {word[: i + 1][::-1]}")
    return "\n".join(lines)


THOUGHTS: dict[str, Callable[[str, Metadata], str]] = {
    "caesar_cipher": caesar_thought,
    "emoji_mystery": emoji_thought,
    "gcd": gcd_thought,
    "letter_counting": letter_thought,
    "spell_backward": backward_thought,
}


def check_thought(task: str, question: str, thought: str) -> list[bool]:
    """Whether each line is correct, given the question and the lines before it.

    >>> check_thought("gcd", "of these numbers: 12, 8.", "12 = 1 * 8 + 4\\n8 = 2 * 4 + 1")
    [True, False]
    """
    return _CHECKS[task](question, thought.splitlines())


def shifted(word: str, back: int) -> str:
    """The word with every letter moved back in the alphabet by `back`.

    >>> shifted("KHOOR", 3)
    'HELLO'
    """
    return "".join(chr((ord(c) - ord("A") - back) % 26 + ord("A")) for c in word)


def _check_caesar(question: str, lines: list[str]) -> list[bool]:
    words, seen = set(_ciphertext(question).split()), set()
    correct = []
    for line in lines:
        if match := re.fullmatch(r"shift (\d+): ([A-Z]+) -> ([A-Z]+)", line):
            plain = shifted(match[2], int(match[1]))
            correct.append(match[2] in words and match[3] == plain)
            seen.add(plain)
        else:
            claim = re.fullmatch(r"([A-Z]+) is a word\.", line)
            correct.append(claim is not None and claim[1] in seen)
    return correct


def _check_emoji(question: str, lines: list[str]) -> list[bool]:
    hidden = _hidden(question)
    correct = []
    for i, line in enumerate(lines):
        match = re.fullmatch(r"U\+([0-9A-F]+) -> (\d+) -> (part|.)", line)
        if not match or i >= len(hidden):
            correct.append(False)
            continue
        sign, byte = hidden[i]
        letter = chr(byte) if byte < 128 else "part"
        correct.append((int(match[1], 16), int(match[2]), match[3]) == (ord(sign), byte, letter))
    return correct


def _check_gcd(question: str, lines: list[str]) -> list[bool]:
    known, correct, divisor = set(_gcd_numbers(question)), [], None
    for line in lines:
        numbers = [int(n) for n in re.findall(r"\d+", line)[:4]]
        if re.fullmatch(r"\d+ = \d+ \* \d+ \+ \d+", line):
            a, q, b, r = numbers
            correct.append({a, b} <= known and a == q * b + r and r < b)
            known.add(r)
            # The divisor that leaves no remainder is the gcd of both numbers.
            divisor = b if r == 0 else divisor
        else:
            correct.append(line == f"The last divisor is {divisor}.")
    return correct


def _check_letters(question: str, lines: list[str]) -> list[bool]:
    letter, words = _letter_and_words(question)
    correct, total = [], 0
    for i, line in enumerate(lines):
        count = words[i].lower().count(letter.lower()) if i < len(words) else 0
        total += count
        correct.append(i < len(words) and line == f"{words[i]}: {count}, total {total}")
    return correct


def _check_backward(question: str, lines: list[str]) -> list[bool]:
    word = _word(question)
    true = [f"{word[:i][::-1]}, then {word[i]}: {word[: i + 1][::-1]}" for i in range(1, len(word))]
    return [i < len(true) and line == true[i] for i, line in enumerate(lines)]


_CHECKS: dict[str, Callable[[str, list[str]], list[bool]]] = {
    "caesar_cipher": _check_caesar,
    "emoji_mystery": _check_emoji,
    "gcd": _check_gcd,
    "letter_counting": _check_letters,
    "spell_backward": _check_backward,
}


# ---- what a question contains ----


def _found(pattern: str, question: str) -> re.Match[str]:
    match = re.search(pattern, question, re.DOTALL)
    assert match is not None, f"the package words this question in another way: {question}"
    return match


def _ciphertext(question: str) -> str:
    return _found(r"cipher text: ([A-Z ]+)", question)[1].strip()


def _hidden(question: str) -> list[tuple[str, int]]:
    """(variation selector, its byte) of every hidden character.

    Bytes 0-15 are the 16 selectors of Unicode's plane 0, the others the 240 of plane 14.
    """
    signs = re.findall("[\ufe00-\ufe0f\U000e0100-\U000e01ef]", question)
    return [(s, ord(s) - 0xFE00 if ord(s) <= 0xFE0F else ord(s) - 0xE0100 + 16) for s in signs]


def _gcd_numbers(question: str) -> list[int]:
    return [int(n) for n in _found(r"numbers: ([\d, ]+)", question)[1].split(",") if n.strip()]


def _letter_and_words(question: str) -> tuple[str, list[str]]:
    match = _found(r'letter "(.)" appear in the text: "(.*)"', question)
    return match[1], match[2].split()


def _word(question: str) -> str:
    return question.rsplit(": ", 1)[1].strip()
