"""Suites `scan-moto` and `scan-rclone`: a whole scan beside the least that its depth can take, on two S3 servers.

- `listing`: finding and judging every delta, beside boto3's bare paginator over the same keys.
- `header`: the same with the bytes that are read, beside bare range reads by as many threads.
- `structure`: 200 deltas of 50 to 500 embeddings, beside the seed's check of the same: download, open with Chroma,
  list, count, close, in one warm process.

Each server is a process of its own on this machine. What bounds a scan is told beside it: the processor time of both
processes as a share of the time that the scan took. Python runs on one processor at a time, so near 100% is the limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import boto3

from bench import ROOT
from bench.cost.figures import Figure
from bench.cost.stock import stocked
from bench.cost.targets import held
from bench.cost.timing import Measure, in_turns
from devtools.stack.servers import Server, moto, rclone
from scanner.commands.options import Options
from scanner.commands.scan import scan
from shared.model.delta import DATABASE, SEGMENT_FILES
from shared.model.verdict import Depth

KEYS = 10_000
"""Listed in the suite `listing`: pages of 1,000, five files a delta."""
DELTAS = 200
SIZES = range(50, 501, 50)
"""Embeddings of the deltas, in turn."""

_DIMENSION = 384  # of all-MiniLM-L6-v2, with which Chroma embeds by default
_JOBS = 8
_ROUNDS = 7
_SEED_ROUNDS = 3
_BUCKET = "deltas"
_MANY = "many"  # the bucket of the keys that are only listed: moto goes through a whole bucket for each page
_NOWHERE = Path(os.devnull)
_SEGMENT = "0b3c9f4e-1111-4222-8333-444455556666"
_NAMES = (DATABASE, *(f"{_SEGMENT}/{name}" for name in SEGMENT_FILES if name != "index_metadata.pickle"))


def moto_figures() -> list[Figure]:
    """Against a moto server."""
    with moto() as server, _environment(server):
        client: Any = boto3.client("s3")
        for bucket in (_BUCKET, _MANY):
            client.create_bucket(Bucket=bucket)
        with ThreadPoolExecutor(_JOBS) as pool:
            for _ in pool.map(lambda file: client.put_object(Bucket=file[0], Key=file[1], Body=file[2]()), _files()):
                pass
        return _figures("scan-moto", "moto", server)


def rclone_figures() -> list[Figure]:
    """Against `rclone serve s3`."""
    with tempfile.TemporaryDirectory() as folder:
        for bucket, key, content in _files():
            path = Path(folder) / bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content())
        with rclone(Path(folder)) as server, _environment(server):
            return _figures("scan-rclone", "rclone", server)


def _files() -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Bucket and key of all objects, with what gives their content."""
    for number in range(KEYS // len(_NAMES)):
        for name in _NAMES:
            yield _MANY, f"many/{number:06}/{name}", lambda: bytes(512)
    folders = [stocked(embeddings, _DIMENSION) for embeddings in SIZES]
    for number in range(DELTAS):
        folder = folders[number % len(folders)]
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield _BUCKET, f"real/{number:04}/{path.relative_to(folder).as_posix()}", path.read_bytes


@contextmanager
def _environment(server: Server) -> Iterator[None]:
    before = dict(os.environ)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        os.environ.pop(name, None)
    os.environ |= {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _figures(suite: str, name: str, server: Server) -> list[Figure]:
    prefixes = [f"real/{number:04}/" for number in range(DELTAS)]
    rows = []
    for depth, place, alternative, against, count, unit in (
        (Depth.LISTING, f"{_MANY}/many", _paginated(), "boto3's bare paginator", KEYS, "us/key"),
        (
            Depth.HEADER,
            f"{_BUCKET}/real",
            _range_reads(prefixes),
            f"bare range reads, {_JOBS} threads",
            DELTAS,
            "us/read",
        ),
    ):
        ours = _Scan(depth, place, server)
        mine, theirs = map(median, in_turns([ours, _timed(alternative)], _ROUNDS))
        what = f"scan --depth {depth}, {name}, {ours.limit}"
        rows.append(held(f"{suite}/{depth}", what, mine * 1e6 / count, against, theirs * 1e6 / count, unit))
    with _seed() as check:
        ours = _Scan(Depth.STRUCTURE, f"{_BUCKET}/real", server)
        mine, theirs = map(median, in_turns([ours, _timed(lambda: check(prefixes))], _SEED_ROUNDS))
    what = f"scan --depth structure, {name}, {ours.limit}"
    mine, theirs = mine * 1e3 / DELTAS, theirs * 1e3 / DELTAS
    rows.append(held(f"{suite}/structure", what, mine, "the seed's check, warm", theirs, "ms/delta"))
    return rows


class _Scan:
    """A measure: the seconds that a scan takes, from the command's call to its last line of ndjson."""

    def __init__(self, depth: Depth, place: str, server: Server) -> None:
        self._options = Options(depth, "ndjson", _NOWHERE, _JOBS)
        self._target = f"s3://{place}"
        self._server = server
        self._shares: list[tuple[float, float]] = []

    def __call__(self) -> float:
        own, foreign, started = time.process_time(), _processor_seconds(self._server.pid), time.perf_counter()
        code = scan([self._target], self._options)
        took = time.perf_counter() - started
        shares = (time.process_time() - own) / took, (_processor_seconds(self._server.pid) - foreign) / took
        self._shares.append(shares)
        if code:
            raise RuntimeError(f"the scan of {self._target} ended with {code}")
        return took

    @property
    def limit(self) -> str:
        """What bounds the scan, in words."""
        own, foreign = (median(share) * 100 for share in zip(*self._shares, strict=True))
        bound = "client" if own >= foreign else "server"
        return f"CPU: client {own:.0f}%, server {foreign:.0f}%, so the {bound} is the limit"


def _timed(action: Callable[[], object]) -> Measure:
    def measure() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return measure


def _processor_seconds(pid: int) -> float:
    """What a process has used so far, all its threads together; see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _paginated() -> Callable[[], None]:
    client: Any = boto3.client("s3")

    def run() -> None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=_MANY, Prefix="many/")
        listed = sum(len(page["Contents"]) for page in pages)
        if listed != KEYS:
            raise RuntimeError(f"{listed} of {KEYS} keys were listed")

    return run


def _range_reads(prefixes: Sequence[str]) -> Callable[[], None]:
    client: Any = boto3.client("s3")

    def read(prefix: str) -> int:
        return len(client.get_object(Bucket=_BUCKET, Key=prefix + DATABASE, Range="bytes=0-99")["Body"].read())

    def run() -> None:
        with ThreadPoolExecutor(_JOBS) as pool:
            if set(pool.map(read, prefixes)) != {100}:
                raise RuntimeError("a range read gave something else than 100 bytes")

    return run


@contextmanager
def _seed() -> Iterator[Callable[[Sequence[str]], None]]:
    """The seed's check in a warm process; the block gets what has it check deltas."""
    command = [sys.executable, "-m", "bench.cost.seed", str(os.getpid()), _BUCKET]
    with subprocess.Popen(  # noqa: S603 -- ours
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answering = process.stdin, process.stdout

        def check(prefixes: Sequence[str]) -> None:
            for prefix in prefixes:
                asking.write(f"{prefix}\n")
                asking.flush()
                if not answering.readline():
                    raise RuntimeError(f"the seed's check of {prefix} gave no answer")

        try:
            yield check
        finally:
            process.kill()
