"""The kinds of histories: what each is full of, beside the usual operations."""

from __future__ import annotations

from dataclasses import dataclass

from devtools.zoo.maintenance import MAINTENANCE
from devtools.zoo.releases import Release


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of histories.

    Args:
        name: What it is called in tables.
        traits: What happens in it; `history.py` and `values.py` ask for them by name. `mixed` is a little of all.
        needs: Capabilities (`releases.py`) that a release must have to be chosen for it.
        maintenance: What users may do to the closed directory, by name.
    """

    name: str
    traits: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    maintenance: tuple[str, ...] = ()

    def takes(self, version: str) -> bool:
        """Whether a release is chosen for it."""
        return all(Release(version).can(capability) for capability in self.needs)


def _kind(name: str, *traits: str, needs: tuple[str, ...] = (), maintenance: tuple[str, ...] = ()) -> Kind:
    return Kind(name, frozenset(traits), needs, maintenance)


KINDS: tuple[Kind, ...] = (
    _kind("plain"),
    _kind("chained", "chained"),
    _kind("defaults", "defaults", "bulk"),
    _kind("outgrown", "outgrown", "defaults"),
    _kind("outgrown-small", "outgrown-small", "chained"),
    _kind("back", "back", "chained"),
    _kind("spaces", "spaces", "restructured", "chained"),
    _kind("tuned", "tuned", "spaces"),
    _kind("documents", "odd_documents"),
    _kind("documents-chained", "odd_documents", "chained"),
    _kind("ids", "odd_ids", "chained"),
    _kind("metadata", "odd_metadata", "chained"),
    _kind("lists", "lists", "restructured", needs=("lists",)),
    _kind("uris", "uris", "chained", needs=("uris",)),
    _kind("nonfinite", "nonfinite", "spaces", needs=("nonfinite",)),
    _kind("vectors", "odd_vectors", "spaces", "chained"),
    _kind("readded", "readded", "chained"),
    _kind("restructured", "restructured", "chained"),
    _kind("tenants", "tenants", needs=("tenants",)),
    _kind("tenants-dropped", "tenants", "restructured", needs=("tenants", "drop_database")),
    _kind("schema", "schema", needs=("schema",)),
    _kind("sparse", "sparse", "served", needs=("sparse",)),
    _kind("tools", "tools", needs=("lists",)),
    _kind("served", "served"),
    _kind("served-killed", "served", "killed"),
    _kind("killed", "killed"),
    _kind("killed-chained", "killed", "chained"),
    *(_kind(f"maintained-{name}", "chained", maintenance=(name,)) for name in MAINTENANCE),
    _kind("wide", "wide"),
    _kind("mixed", "mixed", "chained", maintenance=tuple(MAINTENANCE)),
)
