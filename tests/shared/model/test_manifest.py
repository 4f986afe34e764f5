"""The manifest says what was closed: what it cannot hold is refused in one line, what contradicts it is a finding."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import awscrt.checksums
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.model.delta import MANIFEST, DeltaFile, Listing, may_own
from shared.model.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestCollection,
    ManifestFile,
    compare_checksums,
    compare_collections,
    compare_listing,
    encode_checksum,
)
from shared.model.verdict import CollectionCount, Finding
from shared.storage.folder import checksum_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DATABASE = ManifestFile(name="chroma.sqlite3", size=4096, crc64nvme=encode_checksum(1))
INDEX = "0a1b2c3d-0000-4000-8000-0123456789ab/header.bin"
HEADER = ManifestFile(name=INDEX, size=100, crc64nvme=encode_checksum(2))
GIVEN = Manifest(
    batch_id="batch-7",
    attempt=2,
    chromadb="1.5.9",
    collections=(ManifestCollection(name="words", dimension=384, count=50),),
    files=(DATABASE, HEADER),
)

checksums = st.integers(0, 2**64 - 1).map(encode_checksum)
ownable = st.text(min_size=1, max_size=99).filter(may_own)
manifests = st.builds(
    Manifest,
    batch_id=st.none() | st.text(),
    attempt=st.integers(1, 10**9),
    chromadb=st.text(),
    collections=st.lists(
        st.builds(
            ManifestCollection, name=st.text(), dimension=st.none() | st.integers(1, 10**6), count=st.integers(0, 2**62)
        ),
        max_size=4,
    ).map(tuple),
    files=st.lists(
        st.builds(ManifestFile, name=ownable, size=st.integers(0, 2**62), crc64nvme=checksums),
        max_size=4,
    ).map(tuple),
)


def stored(*files: tuple[str, int]) -> Listing:
    return Listing.of(DeltaFile(name, size, "etag", NOW) for name, size in files)


@given(manifests)
def test_a_manifest_that_was_written_reads_back_the_same(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.as_bytes()) == manifest


def test_a_manifest_is_json_that_a_person_can_read() -> None:
    assert json.loads(GIVEN.as_bytes()) == {
        "format": 1,
        "batch_id": "batch-7",
        "attempt": 2,
        "chromadb": "1.5.9",
        "collections": [{"name": "words", "dimension": 384, "count": 50}],
        "files": [
            {"name": "chroma.sqlite3", "size": 4096, "crc64nvme": "AAAAAAAAAAE="},
            {"name": INDEX, "size": 100, "crc64nvme": "AAAAAAAAAAI="},
        ],
    }
    assert GIVEN.as_bytes().endswith(b"}\n") and GIVEN.as_bytes().count(b"\n") > 10


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(GIVEN.as_bytes()), **fields}).encode()


def with_file(**fields: Any) -> bytes:
    return changed(files=[{**DATABASE.model_dump(), **fields}])


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", "document"),
        (b"404 Not Found", "document"),
        (b"\xff\xfe\x00", "document"),
        (b"[]", "document"),
        (b"null", "document"),
        (GIVEN.as_bytes()[:-20], "document"),
        (b"[" * 10_000, "document"),
        (b"{}", "chromadb"),
        (changed(format=2), "format"),
        (changed(attempt=0), "attempt"),
        (changed(chromadb=None), "chromadb"),
        (changed(files="all"), "files"),
        (changed(more=1), "more"),
        (changed(**{"two\nlines": 1}), "two"),
        (changed(collections=[{"name": "words", "dimension": 0, "count": 1}]), "collections.0.dimension"),
        (changed(collections=[{"name": "words", "dimension": 3, "count": -1}]), "collections.0.count"),
        (with_file(size=77777).replace(b"77777", b"7" * 5000), ""),
        (with_file(name=""), "files.0.name"),
        (with_file(name="x" * 1025), "files.0.name"),
        (with_file(size=-1), "files.0.size"),
        (with_file(size=1.5), "files.0.size"),
        (with_file(crc64nvme=""), "files.0.crc64nvme"),
        (with_file(crc64nvme="AAAAAAAAAAE"), "files.0.crc64nvme"),
        (with_file(crc64nvme="AAAAAAAAAAE=\n"), "files.0.crc64nvme"),
        (with_file(sha256="x"), "files.0.sha256"),
        (changed(files=[DATABASE.model_dump()] * 20_001), "files"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_manifest_is_refused_with_one_line_that_says_where(data: bytes, place: str) -> None:
    with pytest.raises(ValueError) as refused:
        Manifest.parse(data)
    assert place in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_a_manifest_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    largest = GIVEN.as_bytes().ljust(MAX_MANIFEST_BYTES)
    assert Manifest.parse(largest) == GIVEN
    with pytest.raises(ValueError, match=f"{MAX_MANIFEST_BYTES + 1} bytes, at most {MAX_MANIFEST_BYTES}"):
        Manifest.parse(largest + b" ")


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode()))
@example(b"\xed\xa0\x80")
def test_any_bytes_are_a_manifest_or_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.parse(data)


@pytest.mark.parametrize(
    ("listing", "findings"),
    [
        (stored(("chroma.sqlite3", 4096), (INDEX, 100)), []),
        (stored(("chroma.sqlite3", 4096), (INDEX, 100), (MANIFEST, 500)), []),
        (
            stored(("chroma.sqlite3", 4096)),
            [Finding("manifest.file_missing", INDEX, "listed with 100 bytes, not there")],
        ),
        (
            stored(("chroma.sqlite3", 4000), (INDEX, 100)),
            [Finding("manifest.size_differs", "chroma.sqlite3", "4000 bytes, 4096 when it was closed")],
        ),
        (
            stored(("chroma.sqlite3", 4096), (INDEX, 100), ("chroma.sqlite3-wal", 1)),
            [Finding("manifest.file_unlisted", "chroma.sqlite3-wal", "not in the manifest")],
        ),
        (
            stored(("chroma.sqlite3", 4096), (INDEX, 100), ("of somebody else.txt", 1)),
            [],
        ),
    ],
)
def test_names_and_sizes_are_compared_with_the_listing(listing: Listing, findings: list[Finding]) -> None:
    assert compare_listing(GIVEN, listing) == findings


def test_a_file_of_the_producer_s_own_counts_once_the_manifest_names_it() -> None:
    given = GIVEN.model_copy(update={"files": (DATABASE, HEADER.model_copy(update={"name": "notes.txt"}))})
    listing = stored(("chroma.sqlite3", 4096), ("notes.txt", 99), ("other.txt", 1))
    (missing,) = compare_listing(given, listing)
    assert missing.code == "manifest.file_missing"
    (differs,) = compare_listing(given, listing.owning(file.name for file in given.files))
    assert (differs.code, differs.file) == ("manifest.size_differs", "notes.txt")


def test_every_file_that_differs_is_named() -> None:
    codes = [
        finding.code for finding in compare_listing(GIVEN, stored(("chroma.sqlite3", 1), ("chroma.sqlite3-shm", 1)))
    ]
    assert codes == ["manifest.size_differs", "manifest.file_missing", "manifest.file_unlisted"]


def test_a_checksum_that_differs_is_a_finding_and_one_that_is_not_known_is_none() -> None:
    same = {DATABASE.name: DATABASE.crc64nvme, HEADER.name: HEADER.crc64nvme}
    assert compare_checksums(GIVEN, same) == []
    assert compare_checksums(GIVEN, {DATABASE.name: DATABASE.crc64nvme}) == []
    assert compare_checksums(GIVEN, {}) == []
    (finding,) = compare_checksums(GIVEN, {**same, HEADER.name: encode_checksum(3)})
    assert (finding.code, finding.file) == ("manifest.checksum_differs", INDEX)
    assert finding.detail == "CRC64NVME AAAAAAAAAAM=, AAAAAAAAAAI= when it was closed"


@pytest.mark.parametrize(
    ("seen", "detail"),
    [
        ((CollectionCount("words", 384, 50),), None),
        ((), "collection 'words' with 50 embeddings is not there"),
        (
            (CollectionCount("words", 384, 49),),
            "collection 'words' has 49 embeddings of dimension 384, 50 of dimension 384 were uploaded",
        ),
        (
            (CollectionCount("words", 3, 50),),
            "collection 'words' has 50 embeddings of dimension 3, 50 of dimension 384 were uploaded",
        ),
    ],
)
def test_collections_dimensions_and_counts_are_compared(seen: tuple[CollectionCount, ...], detail: str | None) -> None:
    expected = [] if detail is None else [Finding("manifest.content_differs", "", detail)]
    assert compare_collections(GIVEN, seen) == expected


def test_a_collection_that_nobody_uploaded_contradicts_the_manifest() -> None:
    seen = (CollectionCount("words", 384, 50), CollectionCount("stray", 384, 1))
    assert [finding.code for finding in compare_collections(GIVEN, seen)] == ["manifest.content_differs"]


def test_databases_may_have_collections_of_one_name() -> None:
    twins = (CollectionCount("words", 384, 50), CollectionCount("words", 8, 7))
    listed = tuple(ManifestCollection(name=c.name, dimension=c.dimension, count=c.count) for c in twins)
    given = GIVEN.model_copy(update={"collections": listed})
    assert compare_collections(given, twins) == compare_collections(given, twins[::-1]) == []
    (finding,) = compare_collections(given, twins[:1])
    words = "50 of dimension 384 and 7 of dimension 8 were uploaded"
    assert finding.detail == f"collection 'words' has 50 embeddings of dimension 384, {words}"


BYTES = [b"", b"a", b"123456789", bytes(range(256)) * 1000]


def test_the_checksum_is_the_one_of_the_published_test_vector() -> None:
    # "check" of CRC-64/NVME in https://reveng.sourceforge.io/crc-catalogue/all.htm
    assert (
        encode_checksum(awscrt.checksums.crc64nvme(b"123456789"))
        == base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
    )


@pytest.mark.parametrize("data", BYTES, ids=len)
def test_the_checksum_of_a_file_is_what_awscrt_and_s3_say_of_the_same_bytes(
    data: bytes, bucket: str, tmp_path: Path
) -> None:
    import boto3

    path = tmp_path / "file"
    path.write_bytes(data)
    s3 = boto3.client("s3")
    s3.put_object(Bucket=bucket, Key="file", Body=data, ChecksumAlgorithm="CRC64NVME")
    head = s3.head_object(Bucket=bucket, Key="file", ChecksumMode="ENABLED")
    assert checksum_of(path) == encode_checksum(awscrt.checksums.crc64nvme(data)) == head["ChecksumCRC64NVME"]
