"""What the machine refuses is never the delta's fault: it becomes `CouldNotCheck` with a `check.*` code."""

from __future__ import annotations

import errno
import os

import pytest

from shared.model.errors import CouldNotCheck, faults_explained
from shared.model.findings import CATALOGUE, Weight


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "check.disk_full", "No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "check.disk_full", "quota exceeded"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "check.descriptors", "Too many open files"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "check.descriptors", "Too many open files in system"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "check.memory", "Cannot allocate memory"),
        (MemoryError(), "check.memory", "out of memory"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "check.local_io", "Permission denied"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "check.local_io", "Input/output error"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), "check.local_io", "No such file or directory"),
        (OSError("a library's own words"), "check.local_io", "a library's own words"),
    ],
)
def test_a_refusal_of_the_machine_says_what_was_tried_and_why_not(error: Exception, code: str, words: str) -> None:
    with pytest.raises(CouldNotCheck) as fault, faults_explained("reading d1/chroma.sqlite3"):
        raise error
    assert fault.value.code == code
    assert fault.value.detail == str(fault.value)
    assert fault.value.detail.startswith("reading d1/chroma.sqlite3: ")
    assert words in fault.value.detail
    assert fault.value.__cause__ is error
    assert CATALOGUE[code].weight is Weight.UNCHECKED


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), CouldNotCheck("check.gone", "x")])
def test_any_other_error_passes_through_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed, faults_explained("reading"):
        raise error
    assert passed.value is error
