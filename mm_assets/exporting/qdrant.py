"""An export as a collection of Qdrant: of a server, or of its client's local mode in a folder.

Put here: points, and taking out what the index no longer has. Keep out: what the rows are.

A point's id follows from index and item, so exporting again overwrites. Every point says in its payload of which
``index`` (lake and space) and ``generation`` it is; points of this index that a finished export did not write have
another generation, and are removed. Points of others in the same collection are never touched.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.exporting.contents import Contents
from mm_assets.vectors import from_arrow

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Filter

_POINTS_PER_REQUEST = 256  # 2 MB as JSON at 512 dimensions; servers take 32 MB
_TIMEOUT_S = 60
_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00\x1f]')


@dataclass(frozen=True, slots=True)
class Collection:
    """Where a collection is.

    Attributes
    ----------
    server : URL of a server, or folder of the local mode
    name : without the signs that Qdrant refuses
    """

    server: str
    name: str
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse names that Qdrant refuses."""
        if not self.name or _NOT_IN_NAMES.search(self.name):
            msg = f"{self.name!r} cannot be the name of a collection; use letters, digits, - and _"
            raise ConfigError(msg)

    @classmethod
    def of(cls, target: str, name: str | None, api_key: str | None) -> "Collection":
        """Read http(s)://host:port/collection, or a folder and a name; raises ConfigError where it is neither."""
        if not target.startswith(("http://", "https://")):
            if name is None:
                msg = f"name the collection in the folder {target} with --collection, or a server: http://host:6333/collection"
                raise ConfigError(msg)
            return cls(target, name)
        server, _, last = target.rstrip("/").rpartition("/")
        if name is not None or not urlsplit(server).hostname:
            msg = f"{target}: give a server's collection as the last part of its URL alone, http://host:6333/collection"
            raise ConfigError(msg)
        return cls(server, unquote(last), api_key)

    @property
    def is_of_server(self) -> bool:
        """False for a folder."""
        return self.server.startswith(("http://", "https://"))


def write_qdrant(contents: Contents, collection: Collection) -> int:
    """Make a collection hold these rows of the index, and no others of it; returns the number of points removed.

    Interrupted, it holds a part of the new points beside all of the old ones; the same call completes it.

    Raises
    ------
    ConfigError
        There are no vectors, the collection is for other ones, or the server refuses the key.
    ServiceError
        The server does not answer, or not as expected; a retry may help.
    """
    if not contents.has_vectors:
        msg = "words have no vectors, which a collection of Qdrant is of; export them to parquet or lance"
        raise ConfigError(msg)
    with _opened(collection) as client:
        _prepare(client, collection, contents.schema.field("vector").type.list_size)
        for batch in contents.batches():
            for start in range(0, batch.num_rows, _POINTS_PER_REQUEST):
                _send(client, collection.name, batch.slice(start, _POINTS_PER_REQUEST), contents)
        return _remove_others(client, collection.name, contents)


@contextmanager
def _opened(collection: Collection) -> Iterator["QdrantClient"]:
    try:
        from qdrant_client.http.exceptions import ApiException
    except ImportError as error:
        msg = "an export to Qdrant needs its client, which is not installed: pip install qdrant-client"
        raise ConfigError(msg) from error
    client = _open(collection)
    try:
        yield client
    except ApiException as error:
        raise _explain(collection, error) from error
    finally:
        client.close()


def _open(collection: Collection) -> "QdrantClient":
    from qdrant_client import QdrantClient

    if collection.is_of_server:
        return QdrantClient(
            collection.server, api_key=collection.api_key, timeout=_TIMEOUT_S, check_compatibility=False
        )
    try:
        return QdrantClient(path=collection.server)
    except RuntimeError as error:
        msg = f"{collection.server} is open in another program, and the local mode is for one at a time; close it"
        raise ConfigError(msg) from error


def _explain(collection: Collection, error: Exception) -> ConfigError | ServiceError:
    """Say whether a retry can help: not where the server understood and refused."""
    status = getattr(error, "status_code", None)
    where = f"collection {collection.name!r} in {collection.server}: {error}"
    if status in {401, 403}:
        return ConfigError(f"{where}; set the server's key: MM_ASSETS_EXPORT__QDRANT_API_KEY")
    if status is not None and 400 <= status < 500 and status not in {408, 429}:
        return ConfigError(where)
    return ServiceError(f"{where}; what was sent stays, the same command completes it")


def _prepare(client: "QdrantClient", collection: Collection, dim: int) -> None:
    """Make the collection, or see that it takes these vectors."""
    from qdrant_client.models import Distance, PayloadSchemaType, VectorParams

    if client.collection_exists(collection.name):
        found = client.get_collection(collection.name).config.params.vectors
        if not isinstance(found, VectorParams) or (found.size, found.distance) != (dim, Distance.COSINE):
            msg = f"the collection {collection.name!r} is not for one vector of {dim} dimensions by cosine; name another one"
            raise ConfigError(msg)
    else:
        client.create_collection(collection.name, VectorParams(size=dim, distance=Distance.COSINE))
    if collection.is_of_server:  # a server may refuse to remove by a field that has no index; the local mode has none
        for name in ("index", "generation"):
            client.create_payload_index(collection.name, name, PayloadSchemaType.KEYWORD)


def _send(client: "QdrantClient", name: str, rows: pa.RecordBatch, contents: Contents) -> None:
    from qdrant_client.models import Batch

    index, generation = contents.facts["index"], contents.facts["generation"]
    payloads = [row | {"index": index, "generation": generation} for row in rows.drop_columns(["vector"]).to_pylist()]
    ids: list[Any] = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"{index}/{item}")) for item in rows["item_id"].to_pylist()]
    vectors = from_arrow(rows["vector"]).tolist()
    client.upsert(name, Batch(ids=ids, vectors=vectors, payloads=payloads))


def _remove_others(client: "QdrantClient", name: str, contents: Contents) -> int:
    others = _of_other_generations(contents.facts["index"], contents.facts["generation"])
    n = client.count(name, count_filter=others).count
    if n:
        client.delete(name, others)
    return n


def _of_other_generations(index: str, generation: str) -> "Filter":
    from qdrant_client.models import FieldCondition, Filter, MatchValue

    return Filter(
        must=[FieldCondition(key="index", match=MatchValue(value=index))],
        must_not=[FieldCondition(key="generation", match=MatchValue(value=generation))],
    )
