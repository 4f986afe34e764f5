"""The verdict on a healthy delta, kept as tags on its database, and on nothing that was not judged.

S3 puts tags on whatever lies under a key, on no condition. In a bucket that keeps versions the tags go to the version
that was judged. In another one the delta is listed again after it was tagged; if an upload came in between, the tags
are taken off again, and whoever judges that upload takes them off if this process is killed before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.aws.events import DeltaValidated
from shared.aws.telemetry import logger
from shared.check.judgement import Judgement
from shared.model.delta import DATABASE, DeltaLocation
from shared.model.errors import ObjectGone, StorageError
from shared.model.settings import Settings
from shared.model.tags import has_verdict, healthy_depth, verdict_fingerprint, with_verdict, without_verdict
from shared.model.verdict import Status
from shared.storage.store import Store

VERDICTS = ".verdicts"
"""Name, below the quarantine prefix, of the folder where it is noted that somebody was told of a delta without tags."""


def keep_verdict(
    store: Store,
    location: DeltaLocation,
    judgement: Judgement,
    settings: Settings,
    notice: DeltaValidated,
    tell: Callable[[DeltaValidated], None],
) -> bool:
    """Tells of a healthy delta and tags it, in this order, so that nothing is left untold.

    Where it cannot be tagged (ten tags of others, a store without tags, no right to them) it is noted below the
    quarantine that it was told of, and the log says so once.

    Args:
        store: Where the delta lies.
        location: Its place.
        judgement: Its verdict, and what was judged.
        settings: Where the quarantine is.
        notice: What is told.
        tell: Tells it.

    Returns:
        Whether the delta is still the one that was judged. Otherwise it must be judged again.

    Raises:
        StorageError: After it was tagged it could not be told whether it was the right one.
        MessagingError: It could not be told.
    """
    room = _room(store, location, judgement)
    if room is None:
        return False
    if room.tags is None:
        _tell_once(store, location, settings, notice, tell, room.problem)
        return True
    tell(notice)
    return _tag(store, location, judgement, room.tags, room.version)


@dataclass(frozen=True, slots=True)
class _Room:
    """What is to become of the tags of a database, of this version of it.

    Args:
        version: None where its bucket keeps none that stays: see `Store.head`.
        tags: All that it shall have; None where it cannot be tagged.
        problem: Why it cannot.
    """

    version: str | None = None
    tags: dict[str, str] | None = None
    problem: str = ""


def _room(store: Store, location: DeltaLocation, judgement: Judgement) -> _Room | None:
    """Returns None where the database is no longer the one that was judged."""
    key = location.key(DATABASE)
    try:
        there = store.head(location.bucket, key)
        if there.etag != judgement.listing.by_name[DATABASE].etag:
            return None
        version = None if there.version == "null" else there.version  # that one is overwritten
        tags = store.tags(location.bucket, key, version)
    except ObjectGone:
        return None
    except StorageError as error:
        return _Room(problem=str(error))
    known = healthy_depth(tags, judgement.listing)
    if known is None or not known.includes(judgement.verdict.depth):
        return _Room(
            version, with_verdict(tags, judgement.verdict, datetime.now(UTC)), "ten tags of others leave no room"
        )
    return _Room(version, tags)


def _tag(
    store: Store, location: DeltaLocation, judgement: Judgement, tags: dict[str, str], version: str | None
) -> bool:
    """Returns whether the delta is still the one that was judged."""
    if version is not None and not _is_judged(store, location, judgement):
        return False
    try:
        store.set_tags(location.bucket, location.key(DATABASE), tags, version)
    except ObjectGone:
        return False
    except StorageError as error:
        _say_untagged(location, str(error))
        return True
    if version is None and not _is_judged(store, location, judgement):
        _untag(store, location, lambda found: verdict_fingerprint(found) == judgement.listing.fingerprint)
        return False
    return True


def untag_unjudged(store: Store, location: DeltaLocation, judgement: Judgement) -> None:
    """Takes tags of ours off a delta that is not healthy, unless they are about these objects and may still be right.

    A process that was killed, or delayed, may have put them on what an upload brought in the meantime.
    """
    if DATABASE not in judgement.listing.by_name:
        return
    corrupt, fingerprint = judgement.verdict.status is Status.CORRUPT, judgement.listing.fingerprint
    try:
        _untag(
            store, location, lambda tags: has_verdict(tags) and (corrupt or verdict_fingerprint(tags) != fingerprint)
        )
    except StorageError as error:
        logger.info("Whether it carries tags cannot be told", extra={"delta": location.uri, "reason": str(error)})


def _is_judged(store: Store, location: DeltaLocation, judgement: Judgement) -> bool:
    return store.list_delta(location).owning(judgement.listing.by_name).files == judgement.listing.files


def _untag(store: Store, location: DeltaLocation, wrong: Callable[[dict[str, str]], bool]) -> None:
    try:
        tags = store.tags(location.bucket, location.key(DATABASE))
        if wrong(tags):
            store.set_tags(location.bucket, location.key(DATABASE), without_verdict(tags))
            logger.warning("Tags of another upload were taken off", extra={"delta": location.uri})
    except ObjectGone:
        return  # and the tags with it


def _tell_once(
    store: Store,
    location: DeltaLocation,
    settings: Settings,
    notice: DeltaValidated,
    tell: Callable[[DeltaValidated], None],
    problem: str,
) -> None:
    bucket, prefix = settings.quarantine_of(location.bucket)
    key = f"{prefix}{VERDICTS}/{notice.id}.json"
    try:
        store.head(bucket, key)
        return
    except ObjectGone:
        pass
    except StorageError as error:
        problem = f"{problem}; {error}"
    tell(notice)
    _say_untagged(location, problem)
    try:
        store.put(bucket, key, notice.model_dump_json().encode() + b"\n", only_if_absent=True)
    except StorageError as error:
        logger.warning("It will be told again", extra={"delta": location.uri, "reason": str(error)})


def _say_untagged(location: DeltaLocation, reason: str) -> None:
    logger.warning("Healthy delta could not be tagged", extra={"delta": location.uri, "reason": reason})
