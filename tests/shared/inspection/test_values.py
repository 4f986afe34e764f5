"""Values out of a delta may be anything; whether they are text, and what a detail shows of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.inspection.values import is_text, shown, some


@pytest.mark.parametrize("value", ["", "item-1", "ü", "雪", "\x1b[2J", "\0"])
def test_text_is_what_sqlite_could_decode(value: str) -> None:
    assert is_text(value)


@pytest.mark.parametrize("value", [None, 1, 1.5, b"item", "\udcff", "a\udc80b"])
def test_bytes_that_are_not_utf_8_and_other_types_are_none(value: object) -> None:
    assert not is_text(value)


@given(st.binary())
def test_text_is_exactly_what_decodes(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        valid = False
    else:
        valid = True
    assert is_text(data.decode("utf-8", "surrogateescape")) is valid


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("item-1", "'item-1'"),
        (None, "None"),
        (7, "7"),
        (b"\xff", "b'\\xff'"),
        ("\x1b[2J", "'\\x1b[2J'"),
        ("it's", '"it\'s"'),
    ],
)
def test_a_value_is_shown_as_python_writes_it(value: object, words: str) -> None:
    assert shown(value) == words


@given(st.text() | st.binary() | st.integers() | st.floats() | st.text(min_size=200) | st.binary(min_size=200))
def test_whatever_is_shown_is_short_and_printable(value: object) -> None:
    assert shown(value).isprintable() and len(shown(value)) <= 60


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (set(), ""),
        ({"b", "a"}, "'a', 'b'"),
        ({"c", "b", "a"}, "'a', 'b', 'c'"),
        ({"d", "c", "b", "a"}, "'a', 'b', 'c', …"),
        ({None, 2, "a"}, "2, None, 'a'"),
    ],
)
def test_of_many_ids_the_first_three_are_named(ids: set[object], words: str) -> None:
    assert some(ids) == words
