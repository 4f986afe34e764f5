"""The program of the seed's check: download a delta, open it with Chroma, list and count its collections, close.

It is run as `python -m bench.cost.seed PARENT BUCKET`, stays warm, and checks the deltas whose prefixes it reads from
standard input. Each answer is a line of JSON: how many embeddings it counted. S3 is that of the environment.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from devtools.stack.child import tether


def main() -> None:
    """Checks every delta it is given, one after the other."""
    tether(int(sys.argv[1]))
    import boto3  # noqa: PLC0415 -- as chromadb
    import chromadb  # noqa: PLC0415 -- half a second, in which the parent may end
    from chromadb.config import Settings  # noqa: PLC0415

    bucket = sys.argv[2]
    s3 = boto3.client("s3")
    for prefix in map(str.rstrip, sys.stdin):
        folder = Path(tempfile.mkdtemp())
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                target = folder / entry["Key"].removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, entry["Key"], str(target))
        client = chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
        count = sum(collection.count() for collection in client.list_collections())
        client.close()
        shutil.rmtree(folder)
        sys.stdout.write(json.dumps({"count": count}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
