"""A delta that vanishes between its discovery and its check is not a corrupt one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from scanner.find.discovery import find_stored
from scanner.run.checker import Judge
from shared.model.delta import DATABASE, MANIFEST, DeltaLocation
from shared.model.settings import Settings
from shared.model.verdict import Depth, Status
from shared.storage.store import current_store
from shared.upload import upload_delta
from tests.support import faults

SERVERS = ("moto", "rclone")


def test_a_stored_delta_that_is_gone_is_undetermined(bucket: str) -> None:
    verdict = Judge(Depth.STRUCTURE, Settings())(DeltaLocation(bucket, "deltas/gone/"))
    assert verdict.status is Status.UNDETERMINED
    assert [finding.code for finding in verdict.findings] == ["check.gone"]


def test_so_it_is_where_manifests_are_required(bucket: str) -> None:
    verdict = Judge(Depth.STRUCTURE, Settings(manifest_required=True))(DeltaLocation(bucket, "deltas/gone/"))
    assert verdict.status is Status.UNDETERMINED


def test_a_folder_that_is_gone_is_undetermined(tmp_path: Path) -> None:
    verdict = Judge(Depth.STRUCTURE, Settings())(tmp_path / "gone")
    assert verdict.status is Status.UNDETERMINED
    assert verdict.delta == str(tmp_path / "gone")


def test_both_kinds_get_the_verdict_of_their_bytes(healthy_delta: Path, put_delta) -> None:
    judge = Judge(Depth.STRUCTURE, Settings(settle_seconds=0, arrival_seconds=0))
    stored, local = judge(put_delta(healthy_delta, "deltas/x")), judge(healthy_delta)
    assert stored.status is local.status is Status.HEALTHY
    assert stored.collections == local.collections


def kinds_of(requests: list[Any], location: DeltaLocation) -> list[str]:
    """What was asked of the objects of a delta: `HEAD`, or what was read, with `whole` where it was no range."""
    asked = []
    for request in requests:
        name = urlsplit(request.url).path.partition(location.prefix)[2]
        whole = "" if "Range" in request.headers else " whole"
        asked.append("HEAD" if request.method == "HEAD" else f"{name.rpartition('/')[2]}{whole}")
    return asked


@pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER])
def test_a_found_delta_is_listed_without_a_request_and_its_header_is_two_reads(
    flushed_delta: Path, put_delta, monkeypatch: pytest.MonkeyPatch, bucket: str, depth: Depth
) -> None:
    location = put_delta(flushed_delta, "deltas/x")
    (found,) = find_stored(current_store(), bucket, "")
    requests: list[Any] = []
    store = faults.doing(requests.append)
    monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
    judge = Judge(depth, Settings(settle_seconds=0, arrival_seconds=0), trust_tags=True)
    assert judge(found).status is Status.HEALTHY
    assert kinds_of(requests, location) == ([] if depth is Depth.LISTING else [DATABASE, "header.bin"])


@pytest.mark.parametrize("depth", [Depth.LISTING, Depth.HEADER])
def test_a_manifest_is_one_more_read_and_proves_the_index_by_what_the_store_keeps(
    flushed_delta: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, depth: Depth
) -> None:
    upload_delta(flushed_delta, bucket, "deltas/x", batch_id="batch")
    (found,) = find_stored(current_store(), bucket, "")
    requests: list[Any] = []
    store = faults.doing(requests.append)
    monkeypatch.setattr("shared.storage.store.current_store", lambda: store)
    assert Judge(depth, Settings(settle_seconds=0, arrival_seconds=0))(found).status is Status.HEALTHY
    read = [kind for kind in kinds_of(requests, found.location) if kind != "HEAD"]
    manifest = f"{MANIFEST} whole"  # so that it can be compared with the checksum that the store keeps
    assert read == ([manifest] if depth is Depth.LISTING else [manifest, DATABASE])
