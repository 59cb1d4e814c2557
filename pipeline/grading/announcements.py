r"""Find the final answer in a visible text.

In this order: the last \boxed{} (boxes joined by a comma, "and" or "or" are one answer); the last
"The answer is ...", "Answer: ...", "The correct option is ...", "#### ..." or heading "Final
answer"; else the whole text. A pair of <answer> tags limits the search to what is between them.

Every function is linear in the length of the text, which a model wrote and may be megabytes.
"""

import re
from collections import deque

MAX_CHARACTERS = 4096  # of an answer; `same_answer` refuses longer ones
MAX_BOXES = 16
MAX_TAIL = 65_536  # characters at the end in which announcements are found


def final_answer(visible: str) -> str:
    r"""The final answer of a text; the whole text where nothing announces one.

    >>> final_answer(r"So \boxed{3}, no: \boxed{4}."), final_answer("The answer is 3.5. Easy!")
    ('4', '3.5')
    >>> final_answer(r"\boxed{1} and \boxed{2}"), final_answer(" 42 ")
    ('1, 2', '42')
    """
    text = _between_tags(visible)
    boxes = _boxes(text)
    if boxes:
        # A box that never closes leaves the whole text, which states nothing.
        return ", ".join(_connected(text, boxes)) if boxes[-1][2] is not None else text.strip()
    tail = text[-MAX_TAIL:]
    lowered = tail.lower()
    announces = any(word in lowered for word in ("answer", "####", "option", "choice"))
    announced = deque(_ANNOUNCEMENT.finditer(tail) if announces else (), maxlen=1)
    if not announced:
        return text.strip()
    return _sentence(tail[announced[0].end() :][:MAX_CHARACTERS])


def readings(visible: str) -> tuple[tuple[str, ...], ...]:
    r"""The possible final answers, each a tuple of texts that must all equal the expected answer.

    The first is the final answer. A percent sign behind its box may belong to it, and joined boxes
    may each contain the same answer.

    >>> readings(r"$\boxed{28}\%$"), readings(r"\boxed{x+1}, or \boxed{1+x}")
    ((('28',), ('28%',)), (('x+1, 1+x',), ('x+1', '1+x')))
    """
    text = _between_tags(visible)
    answer, boxes = final_answer(text), _boxes(text)
    if boxes and "%" not in answer and _PERCENT_BEHIND.match(text, boxes[-1][1]):
        return (answer,), (f"{answer}%",)
    joined = _connected(text, boxes) if boxes else []
    return ((answer,), tuple(joined)) if len(joined) > 1 else ((answer,),)


def boxed(text: str) -> str | None:
    r"""The contents of the last \boxed or \fbox, braces matched; None without one, or if the last
    one never closes.

    >>> boxed(r"\boxed{1} or \boxed{\frac{1}{2}}"), boxed(r"is $\boxed 2$."), boxed(r"\boxed{4")
    ('\\frac{1}{2}', '2', None)
    """
    boxes = _boxes(text)
    return boxes[-1][2] if boxes else None


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BETWEEN_BOXES = re.compile(
    r"[\s$.]*(?:,|;|(?:,\s*)?(?:\\text\s*\{\s*)?\b(?:and|or)\b\s*\}?)[\s$]*(?:[A-Za-z]\s*=[\s$]*)?"
)
_PERCENT_BEHIND = re.compile(r"[\s$]*(?:\\text\s*\{\s*)?(?:\\?%|per ?cent\b)")
_ADVERB = r"(?:\s+(?:therefore|thus|then|hence|simply|just|clearly|indeed)\b,?)?"
_ANNOUNCEMENT = re.compile(
    rf"\banswer\s{{0,9}}[*_]{{0,3}}\s{{0,9}}(?:\bis\b{_ADVERB}|:)"
    r"|\b(?:correct|right|best)\s{1,9}(?:option|choice)\s{1,9}is\b"
    r"|^[ \t]{0,9}####(?!#)"
    r"|^[ \t#*_]{0,20}(?:final[ \t]{1,9})?answer[ \t*_]{0,9}$",
    re.IGNORECASE | re.MULTILINE,
)
_LEAD = re.compile(r"(?:\s|\*\*|__|:)*")
_DISPLAY = re.compile(r"\\\[(.*?)\\\]|\$\$(.*?)\$\$", re.DOTALL)
_INLINE = re.compile(r"\\\(.*?\\\)|(?<!\\)\$.*?(?<!\\)\$", re.DOTALL)
_ABBREVIATED = "".join(
    rf"(?<!\b{word})"
    for word in ("sq", "cu", "ft", "in", r"[ap]\.m", "St", "Mr", "Mrs", "Dr", "vs")
)
_SENTENCE_END = re.compile(rf"\n|{_ABBREVIATED}\.\s+(?=\S)|\.\**$|。")
_CLAUSE = re.compile(r",?\s+(?:because|since|which|as)\b|,\s+(?:so|where)\b")
# A number, a formula, a choice, or yes and no; of other answers the clause may be a part.
_CERTAIN = re.compile(r".*[\d\\=]|\W*(?:[A-Z]|(?i:yes|no|true|false))\W*$", re.DOTALL)
_IN_WORDS = re.compile(r"\(([A-Za-z][A-Za-z -]*)\)$")


def _between_tags(text: str) -> str:
    """What the last pair of <answer> tags encloses; the whole text without one."""
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, max(end, 0))
    return text[begin + len("<answer>") : end] if 0 <= begin < end else text


def _boxes(text: str) -> list[tuple[int, int, str | None]]:
    """(begin, end, contents) of the last boxes; contents None for one that never closes."""
    found = deque(_BOX.finditer(text), maxlen=MAX_BOXES)
    return [(match.start(), *_contents(text, match.end())) for match in found]


def _contents(text: str, begin: int) -> tuple[int, str | None]:
    """(end, contents) of a box whose argument begins at `begin`."""
    argument = text[begin : begin + 2 * MAX_CHARACTERS]
    if argument[:1] != "{":
        bare = re.split(r"[\s$}]|\.$|\.\s", argument, maxsplit=1)[0]
        return begin + len(bare), bare or None
    depth = 0
    for token in re.finditer(r"\\.|[{}]", argument, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return begin + token.end(), argument[1 : token.start()]
    return len(text), None


def _connected(text: str, boxes: list[tuple[int, int, str | None]]) -> list[str]:
    """The contents of the last box and of those that a comma or a conjunction connects to it."""
    begin, _, contents = boxes[-1]
    if contents is None:
        return []
    answers = [contents.strip()]
    for start, end, before in reversed(boxes[:-1]):
        if before is None or not (end <= begin and _BETWEEN_BOXES.fullmatch(text, end, begin)):
            break
        answers.insert(0, before.strip())
        begin = start
    return answers


def _sentence(text: str) -> str:
    """The answer at the head of a text: a displayed formula, or the first sentence or line.

    A reason ("42, because ...") and the number in words ("42 (forty-two)") are left out.
    """
    text = re.sub(r"[ \t]{2,}", " ", _LEAD.sub("", text, count=1))
    if text.startswith("}") and text.count("}") > text.count("{"):
        text = text[1:].lstrip()  # \text{Answer: }
    if display := _DISPLAY.match(text):
        return (display[1] or display[2] or "").strip()
    inline = _INLINE.match(text)
    head = re.sub(r"\s+", " ", inline[0]) if inline else ""
    rest = text[inline.end() :] if inline else text
    sentence = _SENTENCE_END.split(head + rest, maxsplit=1)[0].strip()
    clause = _CLAUSE.split(sentence, maxsplit=1)[0]
    if clause != sentence and _CERTAIN.match(clause):
        sentence = clause
    sentence = sentence.rstrip("*` ") if sentence.count("*") % 2 else sentence
    restated = _IN_WORDS.search(sentence)
    if restated and _is_in_words(sentence[: restated.start()], restated[1]):
        sentence = sentence[: restated.start()].rstrip()
    return sentence


_SMALL_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
"""
_SMALL = _SMALL_NUMBERS.split()
_TENS_NUMBERS = """
    twenty thirty forty fifty sixty seventy eighty ninety
"""
_TENS = _TENS_NUMBERS.split()


def _is_in_words(number: str, words: str) -> bool:
    """Whether the words are the name of the number: forty-two is 42."""
    digits = re.sub(r"[^0-9]", "", number) if "." not in number else ""
    spoken = re.sub(r"\band\b|-", " ", words.lower()).split()
    return 0 < len(digits) <= 6 and spoken == _words(int(digits)).split()


def _words(number: int) -> str:
    """A number below a million in words, without hyphens and without "and"."""
    if number >= 1000:
        rest = number % 1000
        return f"{_words(number // 1000)} thousand {_words(rest) if rest else ''}".strip()
    if number >= 100:
        rest = number % 100
        return f"{_SMALL[number // 100]} hundred {_words(rest) if rest else ''}".strip()
    if number >= 20:
        rest = number % 10
        return f"{_TENS[number // 10 - 2]} {_SMALL[rest] if rest else ''}".strip()
    return _SMALL[number]
