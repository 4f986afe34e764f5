"""A short run of every fuzzing target (`make fuzz` runs the long one), and that a run can be made again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.fuzz import TARGETS, Corpus, Target, fuzz, main

INPUTS = 300


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__.removesuffix("_target"))
def test_no_input_breaks_what_a_parser_promises(make: Any, corpus: Corpus) -> None:
    target: Target = make(corpus)
    assert [str(failure) for failure in fuzz(target, INPUTS, seed=1)] == []


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__.removesuffix("_target"))
def test_an_input_is_made_again_from_its_number(make: Any, corpus: Corpus, tmp_path: Path) -> None:
    def inputs(of: Corpus) -> list[str]:
        made = [make(of).make(random.Random(f"0 {number}")) for number in range(20)]
        return [repr(one).replace(str(of.folder), "") for one in made]

    assert inputs(corpus) == inputs(Corpus(tmp_path))


def test_a_broken_promise_is_reported_with_the_way_to_make_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(data: bytes) -> None:
        raise KeyError(len(data))

    monkeypatch.setattr("tests.support.fuzz.id_map.parse", crash)
    assert main(["--inputs", "5", "--seed", "7", "--only", "idmap"]) == 1
    told = capsys.readouterr().out
    assert "KeyError" in told
    assert "--seed 7 --only idmap --first 0 --inputs 1" in told
