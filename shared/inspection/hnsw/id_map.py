"""`index_metadata.pickle`, the id map of a vector index, read without ever running a pickle.

A pickle is a program. This is a machine for the few instructions that Chroma's own writers emit (protocol 3 dicts from
1.x, protocol 5 `PersistentData` objects from 0.x; opcodes as in CPython's `pickletools`), which builds nothing but
strings, whole numbers and dicts of them. Any other instruction ends it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import eq
from typing import Any, TypeGuard

from shared.inspection.limits import ID, NO_LIMITS, ROW, Limits, memory_of
from shared.model.delta import printable

_PERSISTENT_DATA = ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData")
_TEXT, _INTEGER, _STOP = ord("X"), ord("J"), ord(".")
_MAX_DICTS = 16  # Chroma writes four
MAX_SEQUENCE_NUMBER = 2**63 - 1
_LONGEST_NUMBER = 8  # bytes
_LOOK = 10_000  # instructions between two looks at what they keep
_INSTRUCTION = 72  # bytes that one keeps at most, but for a long text: a place on the stack, and a number or an id
_SHORT, _DECODED = 1024, 5  # bytes of a text that is in that; bytes that each byte of a longer one takes, with a copy
_MARK = object()
_CLASS = object()
_U16, _U32, _U64, _I32 = (struct.Struct(code).unpack_from for code in ("<H", "<I", "<Q", "<i"))


class IdMapError(Exception):
    """The bytes are not an id map of Chroma's; the message gives the offset and what stands there."""


class HostileIdMapError(IdMapError):
    """The bytes ask for a class to be imported or a function to be called. Nothing was."""


@dataclass(frozen=True, slots=True)
class IdMap:
    """The id map of a flushed index.

    Args:
        labels: Label of each id in the index.
        max_seq_id: The last operation that was flushed, where the writer keeps it here (0.4), else None.
        added: How many labels were ever given out; Chroma takes the next one from it.
    """

    labels: dict[str, int]
    max_seq_id: int | None
    added: int


def parse(data: bytes, limits: Limits = NO_LIMITS) -> IdMap:
    """The id map in `data`.

    Args:
        data: The pickle.
        limits: What it may cost. What the id map itself takes stays counted.

    Raises:
        CouldNotCheck: It would take more memory than it may.
        HostileIdMapError: It asks for code to be run.
        IdMapError: It is anything else than what Chroma writes.
    """
    machine = _Machine(data, limits)
    before = limits.left
    try:
        state = machine.run()
    except UnicodeDecodeError as error:
        raise IdMapError(f"an id at offset {machine.at} is not UTF-8") from error
    except (IndexError, struct.error, TypeError, KeyError, ValueError) as error:
        detail = f"ends early or contradicts itself at offset {machine.at} ({type(error).__name__}: {error})"
        raise IdMapError(detail) from error
    if not isinstance(state, dict):
        raise IdMapError(f"holds a {type(state).__name__} instead of a dict")
    labels, label_to_id = state.get("id_to_label"), state.get("label_to_id")
    if not isinstance(labels, dict) or not isinstance(label_to_id, dict):
        raise IdMapError("has no id_to_label and label_to_id")
    if {*map(type, labels)} - {str} or {*map(type, labels.values())} - {int}:
        raise IdMapError("id_to_label maps something else than text to numbers")
    if len(labels) != len(label_to_id) or not all(map(eq, map(label_to_id.get, labels.values()), labels)):
        raise IdMapError(f"id_to_label ({len(labels)}) and label_to_id ({len(label_to_id)}) do not mirror each other")
    max_seq_id, added = state.get("max_seq_id"), state.get("total_elements_added")
    if not (max_seq_id is None or _is_count(max_seq_id)) or not _is_count(added):
        raise IdMapError("max_seq_id or total_elements_added is not a number")
    limits.drop(max(0, before - limits.left - ROW * len(labels)))
    return IdMap(labels, max_seq_id, added)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SEQUENCE_NUMBER


class _Machine:
    """A stack machine for the opcodes that Chroma's writers emit."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self.at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._dicts = 0

    def run(self) -> object:
        data, operations, stack, memo = self._data, _OPERATIONS, self._stack, self._memo
        while True:
            known = len(memo)
            if self._step(data, operations, stack):
                return stack.pop()
            self._limits.keep(_LOOK * _INSTRUCTION + (len(memo) - known) * ID)

    def _step(self, data: bytes, operations: dict[int, Callable[[_Machine], None]], stack: list[Any]) -> bool:
        """Runs some instructions. Returns whether the last of the pickle was among them."""
        for _ in range(_LOOK):
            at = self.at
            opcode = data[at]
            # The two instructions that an id map of 1.x consists of, without the calls.
            if opcode == _TEXT:
                (length,) = _U32(data, at + 1)
                end = at + 5 + length
                if end > len(data):
                    raise IdMapError(f"{length} bytes announced at offset {at + 1}, {len(data) - at - 5} are there")
                if length > _SHORT:
                    self._limits.keep(_DECODED * length)
                text = data[at + 5 : end].decode()
                if not text.isascii():
                    self._limits.keep(memory_of(text))
                stack.append(text)
                self.at = end
            elif opcode == _INTEGER:
                stack.append(_I32(data, at + 1)[0])
                self.at = at + 5
            elif opcode == _STOP:
                return True
            else:
                self.at = at + 1
                operation = operations.get(opcode)
                if operation is None:
                    raise IdMapError(f"instruction {bytes([opcode])!r} at offset {at} is none that Chroma writes")
                operation(self)
        return False

    def _take(self, count: int) -> bytes:
        start = self.at
        self.at = end = start + count
        if end > len(self._data):
            raise IdMapError(f"{count} bytes announced at offset {start}, {len(self._data) - start} are there")
        return self._data[start:end]

    def _number(self, unpack: Callable[[bytes, int], tuple[int]], width: int) -> int:
        (value,) = unpack(self._data, self.at)
        self.at += width
        return value

    def protocol(self) -> None:
        self.at += 1

    def frame(self) -> None:
        self.at += 8

    def short_text(self) -> None:
        self._stack.append(self._take(self._take(1)[0]).decode())

    def long_text(self) -> None:
        length = self._number(_U64, 8)
        if self.at + length <= len(self._data):
            self._limits.keep(_DECODED * length)
        self._stack.append(self._take(length).decode())

    def byte(self) -> None:
        self._stack.append(self._take(1)[0])

    def unsigned_short(self) -> None:
        self._stack.append(self._number(_U16, 2))

    def long_integer(self) -> None:
        digits = self._take(self._take(1)[0])
        if len(digits) > _LONGEST_NUMBER:
            raise IdMapError(f"a number of {len(digits)} bytes at offset {self.at}, Chroma's have 8 at most")
        self._stack.append(int.from_bytes(digits, "little", signed=True))

    def none(self) -> None:
        self._stack.append(None)

    def empty_dict(self) -> None:
        self._dicts += 1
        if self._dicts > _MAX_DICTS:
            raise IdMapError(f"more than {_MAX_DICTS} dicts")
        self._stack.append({})

    def empty_tuple(self) -> None:
        self._stack.append(())

    def mark(self) -> None:
        self._stack.append(_MARK)

    def set_items(self) -> None:
        stack = self._stack
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
            if start < 1:
                raise IdMapError(f"items without a dict at offset {self.at - 1}")
        target = stack[start - 1]
        if type(target) is not dict:
            raise IdMapError(f"items for a {type(target).__name__} at offset {self.at - 1}")
        self._limits.keep(ID * (len(stack) - start) // 2)
        target.update(zip(stack[start + 1 :: 2], stack[start + 2 :: 2], strict=True))
        del stack[start:]

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise IdMapError(f"an item without a dict at offset {self.at - 1}")
        self._limits.keep(ID)
        self._stack[-1][key] = value

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def put(self) -> None:
        self._memo[self._take(1)[0]] = self._stack[-1]

    def long_put(self) -> None:
        self._memo[self._number(_U32, 4)] = self._stack[-1]

    def get(self) -> None:
        self._stack.append(self._memo[self._take(1)[0]])

    def long_get(self) -> None:
        self._stack.append(self._memo[self._number(_U32, 4)])

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._import(module, name)

    def text_global(self) -> None:
        end = self._data.index(b"\n", self._data.index(b"\n", self.at) + 1)
        module, name = self._take(end - self.at).decode().split("\n")
        self.at += 1
        self._import(module, name)

    def _import(self, module: object, name: object) -> None:
        if (module, name) != _PERSISTENT_DATA:
            named = isinstance(module, str) and isinstance(name, str)  # anything else may be endless when shown
            wanted = printable(f"{module:.60}.{name:.60}") if named else "something that has no name"
            raise HostileIdMapError(f"asks for {wanted} at offset {self.at - 1}; it was not run")
        self._stack.append(_CLASS)

    def new_object(self) -> None:
        arguments, cls = self._stack.pop(), self._stack.pop()
        if cls is not _CLASS or arguments != ():
            raise HostileIdMapError(f"constructs an object at offset {self.at - 1}; it was not run")
        self._stack.append(_CLASS)

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack.pop()
        if target is not _CLASS or type(state) is not dict:
            raise HostileIdMapError(f"builds an object at offset {self.at - 1}; it was not run")
        self._stack.append(state)

    def call(self) -> None:
        raise HostileIdMapError(f"calls a function at offset {self.at - 1}; it was not run")


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol, 0x95: _Machine.frame, 0x8C: _Machine.short_text,
    0x8D: _Machine.long_text, ord("K"): _Machine.byte, ord("M"): _Machine.unsigned_short,
    0x8A: _Machine.long_integer, ord("N"): _Machine.none, ord("}"): _Machine.empty_dict, ord(")"): _Machine.empty_tuple,
    ord("("): _Machine.mark, ord("u"): _Machine.set_items, ord("s"): _Machine.set_item, 0x94: _Machine.memoize,
    ord("q"): _Machine.put, ord("r"): _Machine.long_put, ord("h"): _Machine.get, ord("j"): _Machine.long_get,
    0x93: _Machine.stack_global, ord("c"): _Machine.text_global, 0x81: _Machine.new_object, ord("b"): _Machine.build,
    ord("R"): _Machine.call, ord("i"): _Machine.call, ord("o"): _Machine.call, 0x92: _Machine.call,
}  # fmt: skip
