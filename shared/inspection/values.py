"""Values read from a delta, which may hold anything: whether they are text, and how a detail may quote them."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

from shared.model.delta import printable

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SHOWN = 3
_LONGEST_SHOWN = 60


def is_text(value: object) -> bool:
    """Whether a value is text whose bytes are UTF-8; others come in as lone surrogates (see `sqlite.opened`)."""
    return isinstance(value, str) and (value.isascii() or not _NOT_UTF8.search(value))


def shown(value: object) -> str:
    """A value as a detail may quote it."""
    return printable(repr(value[:_LONGEST_SHOWN] if isinstance(value, str | bytes) else value), _LONGEST_SHOWN)


def some(ids: Set[Any]) -> str:
    """The first of some ids as a detail may quote them."""
    first = ", ".join(shown(id_) for id_ in sorted(ids, key=str)[:_SHOWN])
    return first + (", …" if len(ids) > _SHOWN else "")
