"""A directory as a small file that tells nothing of the machine it was made on. The standard library alone."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path


def blank(folder: Path) -> None:
    """Zeroes the slots that no vector has taken: Chroma writes whatever was in its memory there."""
    for header in folder.rglob("header.bin"):
        count, record = struct.unpack_from("<QQ", header.read_bytes(), 20)
        for name, width in (("data_level0.bin", record), ("length.bin", 4)):
            path = header.with_name(name)
            content = path.read_bytes()
            path.write_bytes(content[: count * width].ljust(len(content), b"\0"))


def pack(folder: Path, target: Path) -> None:
    """Writes everything below the folder to a tar file, compressed."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.mode = 0, 0o755 if member.isdir() else 0o644
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(target, "w:xz", preset=9, format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=anonymous)


def unpack(archive: Path, folder: Path) -> None:
    """Lays out in a folder what `pack` put together."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
