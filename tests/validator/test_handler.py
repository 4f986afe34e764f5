"""The validator from event to consequence, on a real queue's messages and a real delta."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from devtools.damage.catalogue import apply_damage
from devtools.stack.stack import InvocationContext
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.errors import CouldNotCheck, SettingsError
from shared.upload import upload_delta
from tests.conftest import CopyOf, PutDelta
from tests.support import faults
from tests.support.uploads import s3_event
from validator.handler import handler

KEY = "words/delta/one"
NOTHING_FAILED = {"batchItemFailures": []}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")


def in_queue(*bodies: dict[str, Any]) -> dict[str, Any]:
    records = [
        {"messageId": f"message-{number}", "eventSource": "aws:sqs", "body": json.dumps(body)}
        for number, body in enumerate(bodies, 1)
    ]
    return {"Records": records}


def names(bucket: str, prefix: str = "") -> list[str]:
    return [o["Key"] for o in boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


def tags(bucket: str, key: str) -> dict[str, str]:
    found = boto3.client("s3").get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
    return {tag["Key"]: tag["Value"] for tag in found}


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def broken_delta(healthy_delta: Path, copy_of: CopyOf) -> Path:
    folder = copy_of(healthy_delta)
    apply_damage("queue-row-deleted", folder)
    return folder


def test_a_healthy_delta_is_tagged_and_other_tags_stay(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, capsys: pytest.CaptureFixture[str]
) -> None:
    location = put_delta(healthy_delta, KEY)
    key = location.key(DATABASE)
    boto3.client("s3").put_object_tagging(
        Bucket=bucket, Key=key, Tagging={"TagSet": [{"Key": "team", "Value": "words"}]}
    )
    assert handler(in_queue(s3_event(bucket, key)), InvocationContext()) == NOTHING_FAILED
    found = tags(bucket, key)
    assert found["team"] == "words"
    assert (found["deltaguard:status"], found["deltaguard:depth"]) == ("healthy", "structure")
    assert set(found) == {"team"} | {
        f"deltaguard:{name}" for name in ("status", "fingerprint", "depth", "checked-at", "rules")
    }
    output = lines(capsys)
    messages = [line["message"] for line in output if "message" in line]
    assert messages == ["Validating uploaded delta...", "Delta validation successful"]
    (metrics,) = (line for line in output if "_aws" in line)
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Deltaguard"
    assert (metrics["DeltaValidationAttempts"], metrics["DeltaValidationSuccess"]) == ([1.0], [1.0])
    assert (metrics["collection"], metrics["stage"]) == ("words", "dev")


def test_a_corrupt_delta_goes_to_quarantine_and_the_message_is_done(
    bucket: str, broken_delta: Path, put_delta: PutDelta, capsys: pytest.CaptureFixture[str]
) -> None:
    location = put_delta(broken_delta, KEY)
    before = names(bucket)
    assert handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext()) == NOTHING_FAILED
    assert names(bucket, "words/") == []
    assert len(names(bucket, f"quarantine/{KEY}/")) == len(before) + len(("quarantine.json", "told.json"))
    output = lines(capsys)
    assert sum(line["DeltasQuarantined"][0] for line in output if "DeltasQuarantined" in line) == 1
    (told,) = (line for line in output if line.get("message") == "Delta validation failed: corrupt")
    assert told["findings"][0]["code"] == "records.vector_missing"


@pytest.mark.slow
def test_at_depth_open_chroma_is_asked_in_another_process(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DELTAGUARD_DEPTH")
    location = put_delta(healthy_delta, KEY)
    assert handler(s3_event(bucket, location.key(DATABASE)), InvocationContext()) == NOTHING_FAILED
    assert tags(bucket, location.key(DATABASE))["deltaguard:depth"] == "open"


@pytest.mark.parametrize("envelope", ["queue", "direct", "bridge", "bridge in queue"])
def test_every_envelope_leads_to_the_same_consequence(
    bucket: str, broken_delta: Path, put_delta: PutDelta, envelope: str
) -> None:
    location = put_delta(broken_delta, "words and more/delta/a+b é")
    key = location.key(DATABASE)
    bridge = {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {"bucket": {"name": bucket}, "object": {"key": key}},
    }
    event = {
        "queue": in_queue(s3_event(bucket, key)),
        "direct": s3_event(bucket, key),
        "bridge": bridge,
        "bridge in queue": in_queue(bridge),
    }[envelope]
    assert handler(event, InvocationContext()) == NOTHING_FAILED
    assert names(bucket, location.prefix) == []


def test_all_records_of_all_messages_count_and_each_delta_is_judged_once(
    bucket: str, healthy_delta: Path, broken_delta: Path, put_delta: PutDelta, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = put_delta(healthy_delta, "d/1"), put_delta(broken_delta, "d/2")
    event = in_queue(
        s3_event(bucket, one.key(DATABASE), two.key(DATABASE)),
        s3_event(bucket, two.key(DATABASE), two.key("chroma.sqlite3-journal")),
        {"Event": "s3:TestEvent"},
        s3_event(bucket, "unrelated.txt"),
        s3_event(bucket, one.key(DATABASE), name="ObjectRemoved:Delete"),
    )
    assert handler(event, InvocationContext()) == NOTHING_FAILED
    assert [line["message"] for line in lines(capsys) if "message" in line].count("Validating uploaded delta...") == 2
    assert names(bucket, two.prefix) == []


def test_a_key_that_is_gone_already_is_no_failure(bucket: str) -> None:
    assert handler(in_queue(s3_event(bucket, "gone/delta/chroma.sqlite3")), InvocationContext()) == NOTHING_FAILED
    assert names(bucket) == []


def test_events_repeated_after_the_quarantine_change_nothing(
    bucket: str, broken_delta: Path, put_delta: PutDelta
) -> None:
    event = in_queue(s3_event(bucket, put_delta(broken_delta, KEY).key(DATABASE)))
    handler(event, InvocationContext())
    after = names(bucket)
    assert handler(event, InvocationContext()) == NOTHING_FAILED
    assert names(bucket) == after


def test_what_arrives_in_quarantine_is_not_judged(bucket: str, broken_delta: Path, put_delta: PutDelta) -> None:
    location = put_delta(broken_delta, "quarantine/by/hand")
    before = names(bucket)
    assert handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext()) == NOTHING_FAILED
    assert names(bucket) == before


def test_a_delta_that_may_still_be_arriving_comes_back_and_is_untouched(
    bucket: str, broken_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "60")
    location = put_delta(broken_delta, KEY)
    before = names(bucket)
    answer = handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext())
    assert answer == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
    assert names(bucket) == before


def test_with_its_manifest_a_delta_is_judged_without_waiting(
    bucket: str, healthy_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "60")
    upload_delta(healthy_delta, bucket, KEY)
    assert handler(in_queue(s3_event(bucket, f"{KEY}/{MANIFEST}")), InvocationContext()) == NOTHING_FAILED
    assert tags(bucket, f"{KEY}/{DATABASE}")["deltaguard:status"] == "healthy"


def test_a_required_manifest_is_waited_for(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_MANIFEST", "required")
    location = put_delta(healthy_delta, KEY)
    answer = handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext())
    assert answer["batchItemFailures"] == [{"itemIdentifier": "message-1"}]


def _is_read(request: Any) -> bool:
    return request.method == "GET" and "list-type" not in request.url


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda: faults.answering("AccessDenied", 403), id="access denied"),
        pytest.param(lambda: faults.answering("SlowDown", 503), id="throttled"),
        pytest.param(lambda: faults.answering("AccessDenied", 403, _is_read), id="no reads"),
        pytest.param(lambda: faults.failing(EndpointConnectionError(endpoint_url="http://nowhere")), id="no network"),
    ],
)
def test_a_fault_of_the_environment_touches_nothing_and_comes_back(
    bucket: str,
    broken_delta: Path,
    put_delta: PutDelta,
    fault: Any,
    monkeypatch: pytest.MonkeyPatch,
    fast_retries: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    location = put_delta(broken_delta, KEY)
    before = names(bucket)
    monkeypatch.setattr("validator.handler.current_store", fault)
    answer = handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext())
    assert answer == {"batchItemFailures": [{"itemIdentifier": "message-1"}]}
    assert names(bucket) == before
    assert sum(line["DeltasUndetermined"][0] for line in lines(capsys) if "DeltasUndetermined" in line) == 1


def test_one_failing_delta_does_not_hold_up_the_others(
    bucket: str, healthy_delta: Path, broken_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = put_delta(healthy_delta, "d/1"), put_delta(broken_delta, "d/2")
    store = faults.answering("AccessDenied", 403, lambda request: "/d/1/" in request.url or "d%2F1" in request.url)
    monkeypatch.setattr("validator.handler.current_store", lambda: store)
    event = in_queue(s3_event(bucket, one.key(DATABASE)), s3_event(bucket, two.key(DATABASE)))
    event["Records"].append({"messageId": "message-3", "eventSource": "aws:sqs", "body": "{not json"})
    answer = handler(event, InvocationContext())
    assert [failure["itemIdentifier"] for failure in answer["batchItemFailures"]] == ["message-1", "message-3"]
    assert names(bucket, two.prefix) == []


def test_without_a_queue_an_unsettled_delta_raises_so_that_lambda_delivers_again(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "60")
    location = put_delta(healthy_delta, KEY)
    with pytest.raises(CouldNotCheck, match=f"delivered again: s3://{bucket}/{KEY}/"):
        handler(s3_event(bucket, location.key(DATABASE)), InvocationContext())


def test_with_no_time_left_a_delta_comes_back_unjudged(bucket: str, broken_delta: Path, put_delta: PutDelta) -> None:
    class Late(InvocationContext):
        def get_remaining_time_in_millis(self) -> int:
            return 9_000

    location = put_delta(broken_delta, KEY)
    before = names(bucket)
    answer = handler(in_queue(s3_event(bucket, location.key(DATABASE))), Late())
    assert len(answer["batchItemFailures"]) == 1
    assert names(bucket) == before


def test_a_wrong_setting_is_one_clear_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAGUARD_DEPTH", "deep")
    with pytest.raises(SettingsError, match="DELTAGUARD_DEPTH='deep'"):
        handler(in_queue(), InvocationContext())


def test_the_handler_imports_neither_chromadb_nor_the_x_ray_sdk() -> None:
    program = "import sys, validator.handler; print({'chromadb', 'aws_xray_sdk.core'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_store_without_tags_changes_no_verdict(
    bucket: str, healthy_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = put_delta(healthy_delta, KEY)
    store = faults.answering("NotImplemented", 501, lambda request: request.url.endswith("?tagging"))
    monkeypatch.setattr("validator.handler.current_store", lambda: store)
    assert handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext()) == NOTHING_FAILED


def test_a_delta_overwritten_during_its_validation_is_left_to_its_own_event(
    bucket: str, broken_delta: Path, put_delta: PutDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = put_delta(broken_delta, KEY)
    newer = b"SQLite format 3\0 newer"

    def overwrite(request: Any) -> None:
        if request.method == "GET" and "data_level0" in request.url:
            boto3.client("s3").put_object(Bucket=bucket, Key=location.key(DATABASE), Body=newer)

    monkeypatch.setattr("validator.handler.current_store", lambda: faults.doing(overwrite))
    handler(in_queue(s3_event(bucket, location.key(DATABASE))), InvocationContext())
    body = boto3.client("s3").get_object(Bucket=bucket, Key=location.key(DATABASE))["Body"].read()
    assert body == newer
    assert DeltaLocation(bucket, f"{KEY}/") == location
