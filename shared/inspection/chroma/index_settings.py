"""Which settings Chroma takes for the vector index of a collection: its space above all, on which the content depends.

A cosine index keeps unit vectors and their lengths apart, so reading it as another space gives other vectors. The
settings stand in up to three places, and the first of these that applies is taken as a whole, never merged:

1. `collections.schema_str`, unless it is NULL, blank or `null`: the vector index of the key `#embedding`, else that of
   the defaults;
2. `collections.config_json_str`: its `vector_index`, or the defaults where that is not given (0.6 wrote other keys);
3. `segment_metadata` of the VECTOR segment, where 0.x wrote them, if what 1. or 2. gave is nothing but defaults.

The metadata of the collection itself counts for nothing here: 0.x copied it into `segment_metadata` once, when the
collection was made, and 1.x into the configuration; who changes it later changes no index.

Source: chroma-core/chroma 1.5.9, `rust/types/src/collection_schema.rs` (`get_internal_hnsw_config`,
`get_internal_hnsw_config_with_legacy_fallback`), `rust/types/src/collection.rs` (`reconcile_schema_for_read`),
`rust/types/src/hnsw_configuration.rs` (`from_legacy_segment_metadata`), `rust/sysdb/src/sqlite.rs`
(`get_collections_with_conn`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from shared.inspection.values import is_text

_SPACES = ("l2", "cosine", "ip")
_DEFAULTS: Mapping[str, Any] = {
    "space": "l2",
    "ef_construction": 100,
    "ef_search": 100,
    "max_neighbors": 16,
    "num_threads": None,  # as many as the machine has
    "resize_factor": 1.2,
    "sync_threshold": 1000,
    "batch_size": 100,
}
_LEGACY = {
    "hnsw:space": "space",
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:num_threads": "num_threads",
    "hnsw:resize_factor": "resize_factor",
    "hnsw:sync_threshold": "sync_threshold",
    "hnsw:batch_size": "batch_size",
}
_OF_SCHEMA = ("space", "embedding_function", "source_key", "hnsw", "spann")
_LARGEST = 2**64 - 1  # usize
_T = TypeVar("_T")


class SettingsRefused(Exception):
    """Chroma refuses the settings of an index.

    Args:
        place: Where they stand: `schema_str`, `config_json_str` or `segment_metadata`.
        reason: Why.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place = place
        self.reason = reason


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """The settings of one index.

    Args:
        given: Those that are written down at the place that counts, by the names that
            `configuration={"hnsw": ...}` has for them.
        legacy: Whether that place is `segment_metadata`.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    legacy: bool = False

    @property
    def space(self) -> str:
        """`l2`, `cosine` or `ip`."""
        return str(self.given.get("space", _DEFAULTS["space"]))


def index_settings(schema: object, configuration: object, segment: Mapping[str, Any]) -> IndexSettings:
    """The settings that Chroma takes for an index.

    Args:
        schema: `collections.schema_str` as it is stored.
        configuration: `collections.config_json_str` as it is stored.
        segment: The metadata of the VECTOR segment.

    Raises:
        SettingsRefused: Chroma refuses them.
    """
    configured: dict[str, Any] | None = {}
    if configuration is not None:
        configured = _read("config_json_str", _of_configuration, configuration)
    given = _read("schema_str", _of_schema, schema) if _is_there(schema) else configured
    if given is None:
        raise SettingsRefused("config_json_str", "vector_index is not hnsw")
    legacy = _read("segment_metadata", _of_segment, segment)
    if legacy and _is_default(given) and not _is_default(legacy):
        return IndexSettings(legacy, legacy=True)
    return IndexSettings(given)


def _is_default(given: Mapping[str, Any]) -> bool:
    """Whether these are the defaults; that of the threads is how many the machine has on which Chroma reads them."""
    threads = given.get("num_threads") in (None, len(os.sched_getaffinity(0)))
    return threads and {**_DEFAULTS, **given, "num_threads": None} == _DEFAULTS


def _is_there(schema: object) -> bool:
    return schema is not None and not (isinstance(schema, str) and schema.strip() in ("", "null"))


def _read(place: str, read: Callable[[Any], _T], value: Any) -> _T:
    try:
        return read(value)
    except ValueError as error:
        raise SettingsRefused(place, str(error)) from error


def _of_schema(text: object) -> dict[str, Any]:
    schema = _object(_parsed(text), "it")
    keys = _object(_either(schema, "keys", "key_overrides"), "keys")
    defaults = _object(schema.get("defaults"), "defaults")
    for name, types in (("#embedding", keys.get("#embedding")), ("defaults", defaults)):
        config = _vector_index(types, name)
        if config is not None and config.get("spann") is None:
            hnsw = config.get("hnsw")
            given = {} if hnsw is None else _settings(hnsw, f"hnsw of {name}", optional=True)
            space = config.get("space")
            return given if space is None else {"space": _space(space, name), **given}
    raise ValueError("there are no settings of an HNSW index")


def _vector_index(types: object, where: str) -> dict[str, Any] | None:
    """The `config` of the vector index among the types of a key, None where there is none."""
    if types is None:
        return None
    lists = _either(_object(types, where), "float_list", "#float_list")
    if lists is None:
        return None
    index = _either(_object(lists, f"float_list of {where}"), "vector_index", "$vector_index")
    if index is None:
        return None
    index = _object(index, f"vector_index of {where}")
    if not isinstance(index.get("enabled"), bool):
        raise ValueError(f"vector_index of {where} does not say whether it is enabled")
    config = _object(index.get("config"), f"vector_index of {where}")
    _know(config, _OF_SCHEMA, f"vector_index of {where}")
    if config.get("hnsw") is not None and config.get("spann") is not None:
        raise ValueError(f"vector_index of {where} has the settings of two kinds of index")
    return config


def _of_configuration(text: object) -> dict[str, Any] | None:
    """What a configuration gives; None when it is that of another kind of index, which no local Chroma has."""
    configuration = _object(_parsed(text), "it")
    if "vector_index" not in configuration:
        return {}
    index = _object(configuration["vector_index"], "vector_index")
    if [*index] == ["spann"]:
        return None
    if [*index] != ["hnsw"]:
        raise ValueError("vector_index is not one kind of index that Chroma knows")
    return _settings(index["hnsw"], "hnsw", optional=False)


def _of_segment(metadata: Mapping[str, Any]) -> dict[str, Any]:
    legacy = {key: value for key, value in metadata.items() if key.startswith("hnsw:")}
    _know(legacy, _LEGACY, "it")
    named = {_LEGACY[key]: value for key, value in legacy.items()}
    return _settings(named, "it", optional=False, least=2)


def _settings(value: object, where: str, *, optional: bool, least: int = 0) -> dict[str, Any]:
    """The settings in an object, whose types serde checks when Chroma reads them.

    Args:
        value: The object.
        where: Where it stands, for a message.
        optional: Whether null stands for a setting that is not given, and the space stands elsewhere.
        least: The least value of the two thresholds that is accepted when they are read.
    """
    settings = _object(value, where)
    _know(settings, [name for name in _DEFAULTS if not (optional and name == "space")], where)
    if optional:
        settings = {name: setting for name, setting in settings.items() if setting is not None}
    for name, setting in settings.items():
        if name == "space":
            _space(setting, where)
        elif name == "resize_factor":
            if type(setting) not in (int, float):
                raise ValueError(f"{name} of {where} is not a number")
        elif type(setting) is not int or not 0 <= setting <= _LARGEST:
            raise ValueError(f"{name} of {where} is not a whole number from 0 on")
        elif name in ("sync_threshold", "batch_size") and setting < least:
            raise ValueError(f"{name} of {where} is {setting}, expected at least {least}")
    return settings


def _space(value: object, where: str) -> str:
    if value not in _SPACES:
        raise ValueError(f"the space of {where} is not one of {', '.join(_SPACES)}")
    return str(value)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return value


def _either(value: Mapping[str, Any], name: str, alias: str) -> Any:
    return value[name] if name in value else value.get(alias)


def _know(value: Mapping[str, Any], known: Any, where: str) -> None:
    unknown = [name for name in value if name not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown setting {unknown[0]!r:.40}")


def _parsed(text: object) -> object:
    if not isinstance(text, str) or not is_text(text):
        raise ValueError("not a text")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
