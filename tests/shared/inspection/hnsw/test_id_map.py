"""The id map is read without running it: both dialects of Chroma's parse, everything else ends in an `IdMapError`."""

from __future__ import annotations

import pickle
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.inspection.hnsw.id_map import HostileIdMapError, IdMapError, parse

MODULE = "chromadb.segment.impl.vector.local_persistent_hnsw"
OPCODES = b"\x80\x95\x8cX\x8dKMJ\x8aN})(us\x94qrhj\x93c\x81bRio\x92."
"""Those that Chroma writes, and those that are refused by name."""
KNOWN_CLASS = f"c{MODULE}\nPersistentData\n".encode()


class PersistentData:
    """Stands in for the class of chromadb 0.x, and is pickled under its name."""

    __module__ = MODULE

    def __init__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@contextmanager
def chromadb_of_old() -> Iterator[None]:
    """The module that pickle wants to find the class in, for writing and for its own reading."""
    stand_in = ModuleType(MODULE)
    stand_in.PersistentData = PersistentData  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, MODULE, stand_in)
        yield


def state(labels: dict[str, int], **others: Any) -> dict[str, Any]:
    return {
        "dimensionality": None,
        "total_elements_added": max(labels.values(), default=0),
        "max_seq_id": None,
        "id_to_label": labels,
        "label_to_id": {label: id_ for id_, label in labels.items()},
        "id_to_seq_id": dict.fromkeys(labels, 1),
        **others,
    }


def new_form(content: dict[str, Any]) -> bytes:
    """As chromadb 1.x writes it."""
    return pickle.dumps(content, protocol=3)


def old_form(content: dict[str, Any]) -> bytes:
    """As chromadb 0.4 to 0.6 write it."""
    with chromadb_of_old():
        return pickle.dumps(PersistentData(content), protocol=5)


dialect = pytest.mark.parametrize("dumps", [new_form, old_form])
FEW = {f"id-{n}": n for n in range(1, 4)}


def test_the_id_map_that_chroma_wrote_tells_the_label_of_each_id(flushed_delta: Path) -> None:
    data = next(flushed_delta.rglob("index_metadata.pickle")).read_bytes()
    assert parse(data).labels == pickle.loads(data)["id_to_label"]
    assert len(parse(data).labels) == 100


@dialect
@pytest.mark.parametrize(
    "labels",
    [
        {},
        FEW,
        {f"id-{n}": n for n in range(1, 3000)},
        {"": 1, "ü🦆": 2, "a\nb\0": 3, "x" * 255: 4, "x" * 256: 5, "y" * 70_000: 6},
        {"byte": 255, "short": 256, "word": 65_536, "long": 2**31, "longer": 2**62, "none": 0},
        {str(n): n for n in range(1, 10)},
    ],
    ids=["none", "few", "thousands", "long and odd", "all widths", "ids like numbers"],
)
def test_both_dialects_tell_every_id_and_its_label(dumps: Any, labels: dict[str, int]) -> None:
    data = dumps(state(labels))
    with chromadb_of_old():
        read = pickle.loads(data)
    assert parse(data).labels == labels == (read if isinstance(read, dict) else vars(read))["id_to_label"]


@dialect
@pytest.mark.parametrize("number", [None, 0, 7, 70_000, 2**33])
def test_the_last_flushed_operation_is_told_where_the_writer_keeps_it(dumps: Any, number: int | None) -> None:
    assert parse(dumps(state(FEW, max_seq_id=number))).max_seq_id == number


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_dict_is_read_in_every_binary_protocol_that_has_its_own_header(protocol: int) -> None:
    assert parse(pickle.dumps(state(FEW), protocol=protocol)).labels == FEW


@dialect
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"id_to_label": FEW},
        state(FEW, id_to_label=None),
        state(FEW, label_to_id=None),
        state(FEW, id_to_label={}),
        state(FEW, label_to_id={}),
        state(FEW, label_to_id={1: "id-1", 2: "id-2", 3: "id-2"}),
        state(FEW, label_to_id={1: "id-1", 2: "id-2", 4: "id-3"}),
        state({"a": 1, "b": 1}),
        state(FEW, id_to_label={**FEW, "id-3": None}),
        state(FEW, id_to_label={**FEW, "id-3": "3"}),
        state(FEW, id_to_label={**FEW, "id-3": {}}),
        state(FEW, max_seq_id="7"),
        state(FEW, max_seq_id={}),
    ],
    ids=lambda content: repr(content)[:50],
)
def test_an_id_map_that_contradicts_itself_is_refused(dumps: Any, content: dict[str, Any]) -> None:
    with pytest.raises(IdMapError) as refused:
        parse(dumps(content))
    assert not isinstance(refused.value, HostileIdMapError)


@pytest.mark.parametrize("value", [None, 5, "text", [], [1], (), {1, 2}, 1.5, True, b"x", {"a": [1]}])
def test_a_pickle_of_something_else_is_refused(value: object) -> None:
    with pytest.raises(IdMapError):
        parse(pickle.dumps(value, protocol=3))


@dialect
def test_a_pickle_that_was_cut_anywhere_is_refused(dumps: Any) -> None:
    data = dumps(state(FEW))
    for size in range(len(data)):
        with pytest.raises(IdMapError) as refused:
            parse(data[:size])
        assert not isinstance(refused.value, HostileIdMapError)


# --- pickles that run code


class Attack:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.marker,)


class Setter:
    """Runs its own `__setstate__`."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __setstate__(self, content: dict[str, str]) -> None:
        Path(content["marker"]).mkdir()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def attacks(marker: Path) -> dict[str, bytes]:
    path, attack = text(str(marker)), Attack(marker)
    by_protocol = {f"protocol {n}": pickle.dumps(attack, protocol=n) for n in range(6)}
    inside = {
        f"{where} of {dumps.__name__}": dumps(content)
        for dumps in (new_form, old_form)
        for where, content in {
            "id_to_label": state(FEW, id_to_label=attack),
            "a label": state(FEW, id_to_label={"id-1": attack}),
            "max_seq_id": state(FEW, max_seq_id=attack),
            "another key": {**state(FEW), "more": attack},
            "a key": {Setter(str(marker)): 1, **state(FEW)},
        }.items()
    }
    bare = {
        "GLOBAL and REDUCE": b"cos\nmkdir\n(" + path + b"tR.",
        "GLOBAL and REDUCE of protocol 2": b"\x80\x02cos\nmkdir\n" + path + b"\x85R.",
        "INST": b"(" + path + b"ios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + path + b"o.",
        "STACK_GLOBAL": text("os") + text("mkdir") + b"\x93" + path + b"\x85R.",
        "STACK_GLOBAL with a memo": text("os") + b"\x94" + text("mkdir") + b"\x940h\x00h\x01\x93" + path + b"\x85R.",
        "BUILD": pickle.dumps(Setter(str(marker)), protocol=2),
        "after a healthy one": new_form(state(FEW))[:-1] + b"0cos\nmkdir\n" + path + b"\x85R.",
    }
    return {**by_protocol, **inside, **bare}


@pytest.mark.parametrize("name", attacks(Path("marker")))
def test_a_pickle_that_runs_code_runs_none_here(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    with pytest.raises(IdMapError):
        parse(attack)
    assert not marker.exists()
    with chromadb_of_old():
        pickle.loads(attack)
    assert marker.exists(), "the attack must be one that works"


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("GLOBAL of another class", b"cos\nmkdir\n."),
        ("GLOBAL of the module's other class", f"c{MODULE}\nPersistentLocalHnswSegment\n.".encode()),
        ("GLOBAL of a name with dots", f"c{MODULE}\nPersistentData.__init__\n.".encode()),
        ("STACK_GLOBAL", text("os") + text("mkdir") + b"\x93."),
        ("STACK_GLOBAL of no texts", b"K\x01K\x02\x93."),
        ("REDUCE of the known class", KNOWN_CLASS + b")R."),
        ("INST of the known class", b"(" + f"i{MODULE}\nPersistentData\n".encode() + b"."),
        ("OBJ of the known class", b"(" + KNOWN_CLASS + b"o."),
        ("NEWOBJ with an argument", KNOWN_CLASS + b"}\x81."),
        ("NEWOBJ of no class", b"N)\x81."),
        ("NEWOBJ_EX", KNOWN_CLASS + b")}\x92."),
        ("BUILD of no class", b"}}b."),
        ("BUILD with no dict", KNOWN_CLASS + b")\x81Nb."),
        ("BUILD of a dict with a class", b"}" + KNOWN_CLASS + b"b."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_instruction_that_imports_constructs_or_calls_is_hostile(name: str, attack: bytes) -> None:
    with pytest.raises(HostileIdMapError, match=r"at offset \d+; it was not run"):
        parse(b"\x80\x04" + attack)


def test_a_refusal_shows_no_control_character_of_the_pickle() -> None:
    with pytest.raises(HostileIdMapError) as refused:
        parse(b"\x80\x04" + text("o\x1b[2Js") + text("mk\ndir") + b"\x93.")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - set(OPCODES)))
def test_an_instruction_that_chroma_never_writes_is_refused(opcode: int) -> None:
    with pytest.raises(IdMapError, match="is none that Chroma writes"):
        parse(b"\x80\x04" + bytes([opcode]) + b"0\n" * 20)


# --- pickles that exhaust

MANY = 200_000


@pytest.mark.parametrize(
    "data",
    [
        b"(" * MANY + b".",
        b"}(" * MANY + b"u" * MANY + b".",
        b"}" + b"K\x01}" * MANY + b"s" * MANY + b".",
        b"}" + b"K\x01}" * MANY + b"s" * MANY + b"K\x01\x93.",
        b"}" + b"K\x01}" * MANY + b"s" * MANY + b"}b.",
        text("id_to_label") + b"}" + b"K\x01}" * MANY + b"s" * MANY + b".",
        b"}\x94" + b"K\x01h\x00s.",
        b"X\xff\xff\xff\xff.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"\x8d" + struct.pack("<Q", 2**62) + b".",
        b"\x8c\xff.",
        b"\x8a\xff.",
        b"\x95" + b"\xff" * 8,
        b"}r\xff\xff\xff\xffj\xff\xff\xff\xff.",
        b"j\xff\xff\xff\xff.",
        b"c" + b"x" * MANY,
        b"c" + b"x" * MANY + b"\n" + b"y" * MANY + b"\n.",
        b"0" * MANY,
        b"u.",
        b"s.",
        b"}u.",
        b"}(K\x01u.",
        b"}(}Nu.",
        b"}}Ns.",
        b".",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_depth_and_announced_sizes_end_in_a_refusal_and_not_in_exhaustion(data: bytes) -> None:
    with pytest.raises(IdMapError) as refused:
        parse(b"\x80\x04" + data)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("size", [9, 255])
def test_a_number_of_more_bytes_than_chroma_s_is_none(size: int) -> None:
    content = b"\x8a" + bytes([size]) + b"\xff" * (size - 1) + b"\x7f"
    data = new_form(state(FEW, max_seq_id=7)).replace(b"K\x07", content)
    with pytest.raises(IdMapError, match=rf"a number of {size} bytes at offset \d+, Chroma's have 8 at most"):
        parse(data)


@pytest.mark.parametrize(("number", "counts"), [(2**63 - 1, True), (0, True), (-1, False), (-(2**63), False)])
def test_a_sequence_number_is_counted_from_0_on(number: int, counts: bool) -> None:
    content = b"\x8a\x08" + struct.pack("<q", number)
    data = new_form(state(FEW, max_seq_id=7)).replace(b"K\x07", content)
    if counts:
        assert parse(data).max_seq_id == number
    else:
        with pytest.raises(IdMapError, match="is not a number"):
            parse(data)


@pytest.mark.parametrize("dicts", [16, 17])
def test_an_id_map_of_more_dicts_than_chroma_writes_is_none(dicts: int) -> None:
    data = b"\x80\x04" + b"}" * dicts + b"."
    with pytest.raises(IdMapError, match="more than 16 dicts" if dicts > 16 else "has no id_to_label"):
        parse(data)


def test_an_id_map_that_was_cut_is_told_with_the_place_where_it_ends() -> None:
    data = new_form(state(FEW))
    for length in range(len(data)):
        with pytest.raises(IdMapError) as refused:
            parse(data[:length])
        (place,) = re.findall(r"at offset (\d+)", str(refused.value))[:1]
        assert abs(int(place) - length) < 30  # the longest instruction


def test_an_id_that_is_not_utf_8_is_told_with_its_place() -> None:
    with pytest.raises(IdMapError, match="an id at offset 2 is not UTF-8"):
        parse(b"\x80\x04" + b"X\x02\x00\x00\x00\xff\xfe.")


@given(st.binary(max_size=200) | st.lists(st.sampled_from(list(OPCODES))).map(bytes))
@example(b"")
def test_no_bytes_end_in_anything_but_an_id_map_error(data: bytes) -> None:
    with pytest.raises(IdMapError):
        parse(data)


@given(
    st.sampled_from([new_form(state(FEW)), new_form(state({f"id-{n}": n for n in range(1, 40)}))]),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_no_mutation_of_a_valid_id_map_ends_in_anything_but_an_id_map_error(
    data: bytes, changes: list[tuple[int, bytes, int]]
) -> None:
    for place, new, cut in changes:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + cut :]
    try:
        labels = parse(data).labels
    except IdMapError as error:
        assert str(error)
    else:
        assert all(type(id_) is str and type(label) is int for id_, label in labels.items())
