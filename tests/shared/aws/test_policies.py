"""The policies as data: what they deny and to whom, and that each role may do what its runs do, and nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError

from compaction.chunk import process
from compaction.snapshot import final_merge
from scanner.find.targets import StoredRoot, deltas_below
from scanner.gate import ChunkRejected, precheck
from shared.aws import policies
from shared.aws.policies import Policy, Scope
from shared.check.judgement import judge_stored
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth
from shared.quarantine.move import quarantine
from shared.quarantine.restore import held_below, missing_copies, purge, restore
from shared.storage.client import s3_client
from shared.storage.store import Store
from shared.upload import upload_delta
from tests.conftest import PutDelta
from tests.support import faults
from tests.support.verdicts import confirmed

SCOPE = Scope("deltas", ("words/delta/",))
VALIDATOR, PRODUCER, COMPACTION, OPERATOR = (
    f"arn:aws:iam::123456789012:role/{name}" for name in ("validator", "producer", "compaction", "operator")
)
SETTLED = Settings(settle_seconds=0, arrival_seconds=0)
Need = tuple[str, str]


def denial() -> dict[str, Policy]:
    policy = policies.read_denial(
        SCOPE, validators=[VALIDATOR], producers=[PRODUCER], compactions=[COMPACTION], operators=[OPERATOR]
    )
    return {statement["Sid"]: statement for statement in policy["Statement"]}


class TestReadDenial:
    def test_no_database_is_read_before_its_tag_says_healthy(self) -> None:
        statement = denial()["DatabaseUntilValidated"]
        assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
        assert statement["Action"] == ["s3:GetObject", "s3:GetObjectVersion"]
        assert statement["Resource"] == ["arn:aws:s3:::deltas/words/delta/*/chroma.sqlite3"]
        # A negated operator is also true where the key is not there: an object without tags is denied, too.
        assert statement["Condition"]["StringNotEquals"] == {"s3:ExistingObjectTag/deltaguard:status": "healthy"}

    def test_only_those_who_must_look_before_are_exempt(self) -> None:
        exempt = denial()["DatabaseUntilValidated"]["Condition"]["ArnNotLike"]["aws:PrincipalArn"]
        assert exempt == [VALIDATOR, PRODUCER, OPERATOR]

    def test_nobody_but_the_validator_sets_a_verdict(self) -> None:
        statement = denial()["VerdictsOfOthers"]
        assert statement["Action"] == ["s3:PutObjectTagging", "s3:PutObjectVersionTagging"]
        assert statement["Condition"] == {
            "ArnNotLike": {"aws:PrincipalArn": [VALIDATOR]},
            "ForAnyValue:StringLike": {"s3:RequestObjectTagKeys": ["deltaguard:*"]},
        }

    def test_quarantine_is_read_by_no_producer(self) -> None:
        statement = denial()["QuarantineOfOthers"]
        assert statement["Resource"] == ["arn:aws:s3:::deltas/quarantine/*"]
        assert statement["Condition"] == {"ArnNotLike": {"aws:PrincipalArn": [VALIDATOR, COMPACTION, OPERATOR]}}

    def test_a_quarantine_bucket_has_a_policy_of_its_own(self) -> None:
        scope = Scope("deltas", quarantine_bucket="held", quarantine_prefix="q/")
        of_deltas = policies.read_denial(scope, validators=[VALIDATOR])
        assert [statement["Sid"] for statement in of_deltas["Statement"]] == [
            "DatabaseUntilValidated",
            "VerdictsOfOthers",
        ]
        (statement,) = policies.quarantine_denial(scope, validators=[VALIDATOR])["Statement"]
        assert statement["Resource"] == ["arn:aws:s3:::held/q/*"]

    @pytest.mark.usefixtures("bucket")
    def test_s3_takes_it(self) -> None:
        policy = policies.read_denial(SCOPE, validators=[VALIDATOR])
        boto3.client("s3").put_bucket_policy(Bucket="deltas", Policy=json.dumps(policy))


class Recorder:
    """Makes stores, and notes what IAM would have to allow for each of their requests: action and resource.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
    """

    def __init__(self) -> None:
        self.needs: set[Need] = set()

    def watch(self, store: Store) -> Store:
        store._client.meta.events.register("provide-client-params.s3", self._note)
        return store

    def store(self) -> Store:
        return self.watch(Store(s3_client()))

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        bucket = f"arn:aws:s3:::{params['Bucket']}"
        key = f"{bucket}/{params['Key']}" if "Key" in params else ""
        self.needs |= set(self._needed(model.name, params, bucket, key))

    def _needed(self, operation: str, params: dict[str, Any], bucket: str, key: str) -> list[Need]:
        read, write = ("s3:GetObject", key), ("s3:PutObject", key)
        if operation == "CopyObject":
            source = f"arn:aws:s3:::{params['CopySource']['Bucket']}/{params['CopySource']['Key']}"
            tags = [("s3:GetObjectTagging", source)] if params["TaggingDirective"] == "COPY" else []
            return [("s3:GetObject", source), write, ("s3:PutObjectTagging", key), *tags]
        if operation == "DeleteObject":
            delete = ("s3:DeleteObjectVersion" if "VersionId" in params else "s3:DeleteObject", key)
            return [delete, read] if "IfMatch" in params else [delete]
        return {
            "ListObjectsV2": [("s3:ListBucket", bucket)],
            "ListMultipartUploads": [("s3:ListBucketMultipartUploads", bucket)],
            "ListParts": [("s3:ListMultipartUploadParts", key)],
            "ListObjectVersions": [("s3:ListBucketVersions", bucket)],
            "HeadObject": [read],
            "GetObject": [read],
            "PutObject": [write],
            "CreateMultipartUpload": [write],
            "UploadPart": [write],
            "CompleteMultipartUpload": [write],
            "AbortMultipartUpload": [("s3:AbortMultipartUpload", key)],
            "GetObjectTagging": [("s3:GetObjectTagging", key)],
            "PutObjectTagging": [("s3:PutObjectTagging", key)],
        }[operation]


def allowed(policy: Policy, need: Need) -> bool:
    action, resource = need
    return any(
        action in statement["Action"] and any(fnmatchcase(resource, pattern) for pattern in statement["Resource"])
        for statement in policy["Statement"]
    )


def s3_actions(policy: Policy) -> set[str]:
    return {action for s in policy["Statement"] for action in s["Action"] if action.startswith("s3:")}


def test_the_matcher_tells_what_is_allowed_from_what_is_not() -> None:
    policy = policies.producer(SCOPE)
    assert allowed(policy, ("s3:PutObject", "arn:aws:s3:::deltas/words/delta/1/chroma.sqlite3"))
    assert not allowed(policy, ("s3:PutObject", "arn:aws:s3:::deltas/other/1/chroma.sqlite3"))
    assert not allowed(policy, ("s3:PutObjectTagging", "arn:aws:s3:::deltas/words/delta/1/chroma.sqlite3"))


@pytest.fixture
def recorder(bucket: str) -> Recorder:
    return Recorder()


def assert_exact(policy: Policy, recorder: Recorder) -> None:
    assert {need for need in recorder.needs if not allowed(policy, need)} == set(), "used, and not allowed"
    assert s3_actions(policy) - {action for action, _ in recorder.needs} == set(), "allowed, and never used"


def corrupt(put_delta: PutDelta, tmp_path: Path, name: str) -> DeltaLocation:
    folder = tmp_path / name
    folder.mkdir()
    (folder / DATABASE).write_bytes(b"no database")
    (folder / "notes.txt").write_text("of somebody")
    return put_delta(folder, f"words/delta/{name}")


def lacking(recorder: Recorder) -> tuple[DeltaLocation, Store]:
    """A delta whose database is being uploaded in parts, and a store that finds it much later."""
    location = DeltaLocation("deltas", "words/delta/lacking/")
    client = boto3.client("s3")
    client.put_object(Bucket=location.bucket, Key=location.key(MANIFEST), Body=b"{}")
    client.create_multipart_upload(Bucket=location.bucket, Key=location.key(DATABASE))
    return location, recorder.watch(faults.later(10 * Settings().arrival_seconds))


def test_the_validator(
    recorder: Recorder, put_delta: PutDelta, healthy_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from validator.handler import handler

    monkeypatch.setenv("DELTAGUARD_SETTLE_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_ARRIVAL_SECONDS", "0")
    monkeypatch.setenv("DELTAGUARD_DEPTH", "structure")
    monkeypatch.setattr("validator.handler.current_store", recorder.store)
    locations = [put_delta(healthy_delta, "words/delta/sound"), corrupt(put_delta, tmp_path, "broken")]
    for location in locations:
        s3 = {"bucket": {"name": location.bucket}, "object": {"key": location.key(DATABASE)}}
        handler({"Records": [{"eventName": "ObjectCreated:Put", "s3": s3}]}, None)
    location, later = lacking(recorder)
    judge_stored(later, location, Depth.STRUCTURE, Settings())
    assert_exact(policies.validator(SCOPE), recorder)


def test_the_scanner_that_only_reads(
    recorder: Recorder, put_delta: PutDelta, healthy_delta: Path, tmp_path: Path
) -> None:
    put_delta(healthy_delta, "words/delta/sound")
    upload_delta(healthy_delta, "deltas", "words/delta/manifested", settings=SETTLED)
    corrupt(put_delta, tmp_path, "broken")
    store = recorder.store()
    for found in deltas_below(store, StoredRoot("deltas", "words/"), SETTLED):
        judge_stored(store, found.location, Depth.STRUCTURE, SETTLED)
    location, later = lacking(recorder)
    judge_stored(later, location, Depth.STRUCTURE, Settings())
    assert_exact(policies.scanner(SCOPE), recorder)


def test_the_scanner_that_quarantines(recorder: Recorder, put_delta: PutDelta, tmp_path: Path) -> None:
    store, location = recorder.store(), corrupt(put_delta, tmp_path, "broken")
    quarantine(store, location, confirmed(store, location, SETTLED), SETTLED)
    location, later = lacking(recorder)
    judge_stored(later, location, Depth.STRUCTURE, Settings())
    assert_exact(policies.scanner(SCOPE, quarantine=True), recorder)


def test_the_producer(recorder: Recorder, healthy_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_delta(healthy_delta, "deltas", "words/delta/1", store=recorder.store(), settings=SETTLED)
    upload_and_fail(recorder, healthy_delta, "words/delta/2")
    upload_in_parts_and_fail(recorder, tmp_path, "words/delta/3/chroma.sqlite3", monkeypatch)
    assert_exact(policies.producer(SCOPE), recorder)


def test_compaction(
    recorder: Recorder,
    put_delta: PutDelta,
    healthy_delta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    location = corrupt(put_delta, tmp_path, "broken")
    put_delta(healthy_delta, "words/delta/sound")
    plain = Store(s3_client())
    quarantine(plain, location, confirmed(plain, location, SETTLED), SETTLED)
    with pytest.raises(ChunkRejected, match="quarantined at"):
        precheck("deltas", ["words/delta/broken", "words/delta/sound"], store=recorder.store(), settings=SETTLED)
    monkeypatch.setenv("CHROMADB_BUCKET", "deltas")
    plain.put("deltas", "intermediate/b/chunk-1/chroma.sqlite3", b"the rest of an attempt that was killed")
    sound = [{"delta_key": "words/delta/sound"}]
    merged = process("b", 1, sound, {}, store=recorder.store(), settings=SETTLED)
    for _ in range(2):
        final_merge("b", [merged["intermediate_key"]], store=recorder.store(), settings=SETTLED)
    lacked, later = lacking(recorder)
    with pytest.raises(ChunkRejected, match="not there"):
        precheck("deltas", [lacked.prefix], store=later, settings=Settings())
    upload_and_fail(recorder, healthy_delta, "intermediate/b/chunk-2")
    upload_in_parts_and_fail(recorder, tmp_path, "intermediate/b/chunk-3/chroma.sqlite3", monkeypatch)
    assert_exact(policies.compaction(SCOPE), recorder)


def test_the_operator(recorder: Recorder, put_delta: PutDelta, tmp_path: Path) -> None:
    for versions in ("Suspended", "Enabled"):
        boto3.client("s3").put_bucket_versioning(Bucket="deltas", VersioningConfiguration={"Status": versions})
        location = corrupt(put_delta, tmp_path, versions.lower())
        store = Store(s3_client())
        quarantine(store, location, confirmed(store, location, SETTLED), SETTLED)
        boto3.client("s3").put_object(Bucket="deltas", Key=location.key("other.txt"), Body=b"in its place")
        store = recorder.store()
        for work in (missing_copies, lambda s, h: restore(s, h, SETTLED, overwrite=True), purge):
            (held,) = held_below(store, "deltas", location.prefix, SETTLED, pytest.fail)
            work(store, held)
    assert_exact(policies.operator(SCOPE), recorder)


def upload_and_fail(recorder: Recorder, folder: Path, key: str) -> None:
    """An upload whose manifest does not get through, so that what arrived is removed."""
    when: Callable[[Any], bool] = lambda request: request.method == "PUT" and "manifest" in request.url  # noqa: E731
    store = recorder.watch(faults.answering("AccessDenied", 403, when))
    with pytest.raises(Exception, match="not uploaded after 1 attempts"):
        upload_delta(folder, "deltas", key, store=store, settings=SETTLED, attempts=1)


def upload_in_parts_and_fail(recorder: Recorder, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=5 * 1024**2, multipart_chunksize=5 * 1024**2, use_threads=False)
    monkeypatch.setattr("shared.storage.store._TRANSFER", parts)
    (tmp_path / "large").write_bytes(bytes(6 * 1024**2))
    lost = ConnectionClosedError(endpoint_url="http://s3")
    store = recorder.watch(faults.failing(lost, lambda request: "partNumber=2" in request.url))
    with pytest.raises(Exception, match="uploading"):
        store.upload("deltas", key, tmp_path / "large")


class TestRoles:
    def test_messages_are_allowed_for_exactly_the_queues_and_the_bus_that_are_named(self) -> None:
        queue, requests = (f"arn:aws:sqs:us-east-1:123456789012:{name}" for name in ("deltas", "requests"))
        bus = "arn:aws:events:us-east-1:123456789012:event-bus/default"
        policy = policies.validator(SCOPE, events_queue=queue, resubmit_queue=requests, event_bus=bus)
        by_sid = {statement["Sid"]: statement for statement in policy["Statement"]}
        assert by_sid["TakeMessages"]["Resource"] == [queue]
        assert "sqs:ChangeMessageVisibility" in by_sid["TakeMessages"]["Action"]
        assert (by_sid["SendMessages"]["Action"], by_sid["SendMessages"]["Resource"]) == (
            ["sqs:SendMessage"],
            [requests],
        )
        assert (by_sid["Tell"]["Action"], by_sid["Tell"]["Resource"]) == (["events:PutEvents"], [bus])

    def test_resubmission_counts_in_quarantine_and_starts_one_target(self) -> None:
        machine = "arn:aws:states:us-east-1:123456789012:stateMachine:batches"
        queue = "arn:aws:sqs:us-east-1:123456789012:requests"
        policy = policies.resubmit(SCOPE, queue=queue, state_machine=machine)
        assert allowed(policy, ("states:StartExecution", machine))
        assert allowed(policy, ("s3:PutObject", "arn:aws:s3:::deltas/quarantine/resubmissions/ab/1.json"))
        assert not allowed(policy, ("s3:GetObject", "arn:aws:s3:::deltas/words/delta/1/chroma.sqlite3"))
        assert not allowed(policy, ("s3:PutObject", "arn:aws:s3:::deltas/quarantine/words/delta/1/quarantine.json"))

    @pytest.mark.parametrize("role", [policies.validator, policies.scanner, policies.compaction, policies.operator])
    def test_nothing_is_allowed_of_another_bucket_or_everywhere(self, role: Callable[[Scope], Policy]) -> None:
        for statement in role(SCOPE)["Statement"]:
            assert statement["Effect"] == "Allow"
            assert all(resource.startswith("arn:aws:s3:::deltas") for resource in statement["Resource"])
            assert not any("*" in action for action in statement["Action"])

    def test_a_quarantine_bucket_is_listed_in_a_statement_of_its_own(self) -> None:
        scope = Scope("deltas", ("words/",), quarantine_bucket="held", partition="aws-cn")
        statements = {s["Sid"]: s for s in policies.validator(scope)["Statement"]}
        assert statements["List"]["Resource"] == ["arn:aws-cn:s3:::deltas"]
        assert statements["List"]["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["words/*"]}}
        assert statements["ListQuarantine"]["Resource"] == ["arn:aws-cn:s3:::held"]

    def test_the_same_bucket_named_twice_is_one(self) -> None:
        scope = Scope("deltas", ("words/",), quarantine_bucket="deltas")
        listing = policies.validator(scope)["Statement"][0]
        assert listing["Condition"]["StringLikeIfExists"]["s3:prefix"] == ["words/*", "quarantine/*"]
