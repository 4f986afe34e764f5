"""`python -m devtools.stack.raw_copy FOLDER s3://bucket/prefix/`: an upload as by `aws s3 cp --recursive`."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3

from shared.model.delta import parse_s3_uri


def copy(folder: Path, uri: str) -> int:
    """Uploads the files of a folder one by one, with no manifest and no look at what arrived. Returns how many."""
    bucket, prefix = parse_s3_uri(uri)
    client = boto3.client("s3")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        client.upload_file(str(path), bucket, f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}")
    return len(paths)


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_dir():
        sys.exit((__doc__ or "").partition(":")[0])
    sys.stdout.write(f"{copy(Path(sys.argv[1]), sys.argv[2])} files\n")
