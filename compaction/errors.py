"""How a merge fails: one error, which names the delta."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.model.errors import DeltaguardError


class MergeFailed(DeltaguardError):
    """A delta could not be merged, so nothing was. What had been merged until then is gone.

    Args:
        place: The delta, or whatever else could not be done, such as the intermediate.
        reason: Why.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: not merged, and nothing with it: {reason}")
        self.place = place
        self.reason = reason


class MergeOvertaken(MergeFailed):
    """Another attempt at the same merge is at work, or was faster: run it again, and it finds the other's result."""


class MergeDiffers(MergeFailed):
    """What was merged is not what Chroma gives back of a delta: Deltaguard has read that wrongly. Please report it."""


@contextmanager
def failing_as(place: str) -> Iterator[None]:
    """Turns whatever goes wrong in the block into a `MergeFailed` about this place.

    Raises:
        MergeFailed: Something went wrong, in Chroma's Rust code included, whose panics are no `Exception`.
    """
    try:
        yield
    except MergeFailed:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise MergeFailed(place, f"{type(error).__name__}: {error}") from error
