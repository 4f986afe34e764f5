"""A delta that vanishes between its discovery and its check is not a corrupt one."""

from __future__ import annotations

from pathlib import Path

from scanner.judge import Judge
from shared.delta import DeltaLocation
from shared.settings import Settings
from shared.verdict import Depth, Status

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
    judge = Judge(Depth.STRUCTURE, Settings(settle_seconds=0))
    stored, local = judge(put_delta(healthy_delta, "deltas/x")), judge(healthy_delta)
    assert stored.status is local.status is Status.HEALTHY
    assert stored.collections == local.collections
