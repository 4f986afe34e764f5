"""`deltaguard upload`: the producer's upload from the command line."""

from __future__ import annotations

from pathlib import Path

import click

from shared.aws.telemetry import use_stderr
from shared.model.delta import parse_s3_uri
from shared.model.errors import TargetError, UploadFailed
from shared.upload import upload_delta


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", metavar="s3://BUCKET/PREFIX/DELTA_ID")
@click.option("--batch-id", metavar="ID", help="The batch that it came from, for processing it again.")
def upload(directory: Path, target: str, batch_id: str | None) -> None:
    """Upload a closed Chroma directory as a delta, whole or not at all.

    It is checked here first; then every file goes up with its checksum, the manifest last, and what arrived is
    validated. A damaged delta is not uploaded.

    \b
    Exit status:
      0    it is there, whole
      1    it is damaged, or did not arrive; nothing of it is left there
      2    the command line or a setting is wrong, or something else lies there
    """
    use_stderr()
    bucket, prefix = parse_s3_uri(target)
    if not prefix.strip("/"):
        raise TargetError(f"{target}: name the delta, too: s3://{bucket}/PREFIX/DELTA_ID")
    try:
        key = upload_delta(directory, bucket, prefix, batch_id=batch_id)
    except UploadFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"s3://{bucket}/{key}")
