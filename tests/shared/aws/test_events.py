"""Notices: the same thing has the same id, another thing another, and nothing is too large to be sent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devtools.stack.stack import NOTICES as QUEUE
from devtools.stack.stack import LocalStack
from shared.aws.events import NOTICES, ChunkRejected, DeltaUndetermined, DeltaValidated, Notice, known_batch, send
from shared.aws.messaging import current_messaging
from shared.model.errors import MessagingError
from shared.model.settings import Settings
from shared.model.verdict import CollectionCount, Depth, Finding, Verdict
from tests.support import faults

_MOST_BYTES = 256 * 1024
HEALTHY = Verdict(
    "s3://deltas/d/1/", Depth.OPEN, collections=(CollectionCount("words", 8, 5),), size=77, fingerprint="f1"
)
FAULT = Finding("check.throttled", "", "SlowDown")
UNDETERMINED = replace(HEALTHY, observed=(FAULT,))


def test_every_kind_of_event_has_its_own_name_of_the_contract() -> None:
    assert [notice.detail_type for notice in NOTICES] == [
        "Delta Validated",
        "Delta Quarantined",
        "Delta Corrupt",
        "Delta Undetermined",
        "Chunk Rejected",
        "Resubmission Exhausted",
    ]


def test_a_healthy_verdict_is_told_with_what_was_counted() -> None:
    assert json.loads(DeltaValidated.of(HEALTHY, "batch-40").model_dump_json()) == {
        "id": DeltaValidated.of(HEALTHY, None).id,
        "delta": "s3://deltas/d/1/",
        "fingerprint": "f1",
        "batch_id": "batch-40",
        "depth": "open",
        "collections": [{"name": "words", "dimension": 8, "count": 5}],
        "bytes": 77,
    }


def test_the_same_bytes_are_the_same_notice_and_other_bytes_another() -> None:
    again = replace(HEALTHY, duration_ms=99.0)
    assert DeltaValidated.of(HEALTHY, None).id == DeltaValidated.of(again, None).id
    changed = [replace(HEALTHY, fingerprint="f2"), replace(HEALTHY, delta="s3://deltas/d/2/")]
    ids = {DeltaValidated.of(verdict, None).id for verdict in (HEALTHY, *changed)}
    assert len({*ids, DeltaUndetermined.of(UNDETERMINED, None).id}) == 4


def test_the_same_fault_of_the_same_bytes_is_the_same_notice_and_another_fault_another() -> None:
    slower = replace(UNDETERMINED, observed=(replace(FAULT, detail="SlowDown again"),))
    other = replace(UNDETERMINED, observed=(Finding("check.disk_full", "", "full"),))
    ids = [DeltaUndetermined.of(verdict, None).id for verdict in (UNDETERMINED, slower, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_refused_chunk_names_its_deltas_and_the_same_refusal_in_any_order_has_the_same_id() -> None:
    corrupt = Verdict("s3://deltas/d/2/", Depth.OPEN, (Finding("sqlite.empty", "chroma.sqlite3", "0 bytes"),))
    one = ChunkRejected.of((UNDETERMINED, corrupt), 10, "batch-40", 3)
    assert [(d.delta, d.status.value, d.reason) for d in one.deltas] == [
        ("s3://deltas/d/1/", "undetermined", "check.throttled: SlowDown"),
        ("s3://deltas/d/2/", "corrupt", "sqlite.empty: 0 bytes"),
    ]
    assert (one.total, one.refused, one.chunk_index) == (10, 2, 3)
    assert ChunkRejected.of((corrupt, UNDETERMINED), 10, "batch-40", 3).id == one.id
    assert ChunkRejected.of((corrupt, UNDETERMINED), 10, "batch-40", 4).id != one.id


@pytest.mark.parametrize("character", ["x", "\0", "🦆", '"', "\u2028"])
def test_the_largest_notices_fit_into_an_event(character: str) -> None:
    text = character * 5000
    finding = Finding("check.storage", character * 300, text)
    key = character * 1000
    worst = Verdict(
        f"s3://deltas/{key}/",
        Depth.OPEN,
        (finding,) * 500,
        tuple(CollectionCount(f"{number}{text}", 8, 5) for number in range(500)),
        fingerprint="f" * 64,
    )
    notices: list[Notice] = [
        DeltaValidated.of(worst, text),
        DeltaUndetermined.of(worst, text),
        ChunkRejected.of((worst,) * 500, 500, text, 0),
    ]
    assert max(len(notice.model_dump_json().encode()) for notice in notices) < _MOST_BYTES


@given(st.text(max_size=1100))
def test_a_batch_id_is_kept_exactly_or_not_at_all(batch_id: str) -> None:
    assert known_batch(batch_id) == (batch_id if 0 < len(batch_id) <= 1024 else None)


def test_a_notice_reaches_the_bus_as_it_is(stack: LocalStack) -> None:
    notice = DeltaValidated.of(HEALTHY, None)
    send(current_messaging(), Settings.from_environment(), notice)
    (event,) = stack.taken(QUEUE)
    assert DeltaValidated.model_validate(event["detail"]) == notice


def test_without_a_bus_nobody_is_told_and_nothing_is_asked(aws: str) -> None:
    _, messaging = faults.hooked(faults.refusal("AccessDenied", 403))
    send(messaging, Settings(), DeltaValidated.of(HEALTHY, None))
    with pytest.raises(MessagingError):
        send(messaging, Settings(event_bus="deltaguard"), DeltaValidated.of(HEALTHY, None))
