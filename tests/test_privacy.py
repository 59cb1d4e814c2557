"""Secrets and personal data in training text: what is planted is counted, arithmetic is not."""

import json

import pytest

from pipeline.data.privacy import PATTERNS, find_private, privacy_card
from pipeline.records import Problem
from stages import data

# Joined here, so that no scanner takes this file for a leak.
PLANTED = {
    "email": "ann.smith+lists@mail.uni-bonn.de",
    "phone": "+49 228 7355 1234",
    "social_security": "078-05-1120",
    "card": "4111 1111 1111 1111",
    "key": "AKIA" + "IOSFODNN7EXAMPLE",
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "password": "password" + ' = "hunter2hunter2"',
}
MORE_KEYS = [
    "ghp_" + "a1B2" * 9,
    "hf_" + "abcDEF" * 6,
    "sk-" + "proj-0123456789abcdefghij",
    "xoxb-" + "1234567890-abcdef",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w",
]
CLEAN = [
    "100-250-1000=-1150",
    "Compute 123-456-7890.5",
    "12 + 49 - 30 - 1234 = -1203",
    "(100) 200*3000",
    "555-123-4567=x, so x is negative",
    "3 +12 345 6789 12",
    "The number 4111 1111 1111 1112 has sixteen digits.",
    "She types user@host into the shell and prints a@b.",
    "Write to someone@example.com or bob@shop.test.",
    "The password is a word of six letters: secret.",
    "password = input('word?')",
    "f(x)=x@y, 7/8/2024, 10.0.0.1, 1-2-3-4",
    "The sketch sk-etch and the hf_x are short.",
]


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_as_its_kind_and_once(kind):
    text = f"Tom has 3 apples ({PLANTED[kind]}) and buys 4 more."
    assert list(find_private(text)) == [(kind, PLANTED[kind])]


@pytest.mark.parametrize("key", MORE_KEYS)
def test_keys_of_common_services_are_found(key):
    assert ("key", key) in list(find_private(f"export TOKEN={key} # do not commit"))


@pytest.mark.parametrize("phone", ["(228) 735-1234", "228-735-1234", "+1-228-735-1234"])
def test_phone_numbers_with_separators_are_found(phone):
    assert list(find_private(f"Call {phone}.")) == [("phone", phone)]


@pytest.mark.parametrize("text", CLEAN)
def test_arithmetic_and_examples_are_clean(text):
    assert list(find_private(text)) == []


def test_the_card_counts_and_names_rows_but_quotes_nothing():
    problems = [
        Problem(question=f"Q {i}: {text}", answer="1", id=f"p{i}")
        for i, text in enumerate([*PLANTED.values(), *PLANTED.values(), *CLEAN])
    ]
    card = privacy_card(problems)
    assert card["rows"] == len(problems)
    assert card["rows_with_findings"] == 2 * len(PLANTED)
    assert card["found"] == dict.fromkeys(PATTERNS, 2)
    assert card["where"]["email"] == ["p0", "p7"]
    written = json.dumps(card)
    assert not any(secret in written for secret in PLANTED.values())


def test_the_thought_and_the_answer_are_checked_too():
    for field in ("thought", "answer"):
        parts = {"question": "Q?", "thought": "", "answer": "1", field: PLANTED["email"]}
        assert privacy_card([Problem(**parts)])["found"]["email"] == 1


def test_the_data_stage_prints_and_writes_the_counts(tmp_path, capsys):
    rows = [
        {"question": f"Who is {PLANTED['email']}?", "answer": "Ann"},
        {"question": "What is 1 + 1?", "answer": "2"},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.main(data.DataCardConfig(names=str(file), output_dir=str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert "Private data" in printed and PLANTED["email"] not in printed
    (split,) = json.loads((tmp_path / "out" / "data_card.json").read_text())["splits"].values()
    assert split["privacy"]["found"]["email"] == 1
    assert split["privacy"]["rows_with_findings"] == 1
