"""Who an object version is: its id, its partition key, the ids of what is found in it.

Put here: pure functions from (alias, key, ETag, version id) to ids. Keep out: I/O, and any path made from a key.
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import unquote

from mm_assets.errors import ObjectError, Reason

# PostgreSQL's index row ends at 2,704 bytes; the margin leaves room for Dagster's own columns.
MAX_PARTITION_KEY_BYTES = 1_500
_KEPT_PREFIX_BYTES = 200
# Controls do not display, "%" is the escape itself, the others are syntax in Dagster's range and multi-partition
# selections ("[a...b],c", "x|y").
_ESCAPED = re.compile(r"[\x00-\x1f\x7f-\x9f%,\[\]|]|\.(?=\.\.)|(?<=\.)\.(?=\.)|(?<=\.\.)\.")
_SUSPECT = re.compile(r"[\x00-\x1f\x7f-\x9f%,\[\]|]")  # almost no key holds one, and this finds that out faster
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_LOOKS_SHORTENED = re.compile(r"~[0-9a-f]{32}$")  # a key that ends like a shortened one is shortened, too
_ESCAPED_IN_ETAG = re.compile(r"[\x00-\x1f\x7f-\x9f%,\[\]|/@]")


def normalize_etag(etag: str) -> str:
    """Strip quotes and the weak mark: LIST, HEAD and GET of one version then agree. The rest is opaque."""
    return etag.strip().removeprefix("W/").strip('"')


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8"))


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of one object of one source.

    Attributes
    ----------
    alias : the source's unique name, by default its bucket's name
    key : the raw key, never normalised (NFC and NFD are two objects)
    etag : normalised by ``normalize_etag``; opaque
    version_id : only for sources that say so, else empty
    """

    alias: str
    key: str
    etag: str
    version_id: str = ""

    def __post_init__(self) -> None:
        """Refuse keys that no database can hold; a retry cannot help."""
        if _UNSTORABLE.search(self.key):
            raise ObjectError(
                Reason.POLICY, "key holds NUL or a lone surrogate and cannot be stored; rename the object"
            )

    @property
    def object_id(self) -> str:
        """First 32 hex digits of SHA-256 over the length-prefixed parts (so 'a|b/c' has one reading)."""
        framed = _framed(self.alias) + _framed(self.key) + _framed(self.etag)
        if self.version_id:
            framed += _framed(self.version_id)
        return hashlib.sha256(framed).hexdigest()[:32]

    @property
    def partition_key(self) -> str:
        """``alias/key/etag[@version]``, readable, at most 1,500 bytes; unique like ``object_id``."""
        is_plain = "..." not in self.key and not _SUSPECT.search(self.key)
        key = self.key if is_plain else _ESCAPED.sub(_percent, self.key)
        tail = _ESCAPED_IN_ETAG.sub(_percent, self.etag)
        if self.version_id:
            tail += "@" + _ESCAPED_IN_ETAG.sub(_percent, self.version_id)
        whole = f"{self.alias}/{key}/{tail}"
        if len(whole.encode("utf-8")) <= MAX_PARTITION_KEY_BYTES and not _LOOKS_SHORTENED.search(key):
            return whole
        head = key.encode("utf-8")[:_KEPT_PREFIX_BYTES].decode("utf-8", "ignore")
        return f"{self.alias}/{head}~{self.object_id}/{tail[:200]}"


def _framed(text: str) -> bytes:
    raw = text.encode("utf-8")
    return len(raw).to_bytes(4, "big") + raw


def from_partition_key(partition_key: str) -> ObjectVersion:
    """Undo ``ObjectVersion.partition_key``; keys too long to be kept whole are found in the ledger instead."""
    alias, rest = partition_key.split("/", 1)
    key, tail = rest.rsplit("/", 1)
    etag, _, version_id = tail.partition("@")
    return ObjectVersion(alias, unquote(key), unquote(etag), unquote(version_id))


def segment_id(object_id: str, segment_kind: str, ordinal: int) -> str:
    """``<object_id>-<first letter of the kind><ordinal>``: from content and place, never from a running counter."""
    return f"{object_id}-{segment_kind[0]}{ordinal:06d}"


def has_picture(segment_id: str) -> bool:
    """Whether a segment has an image, by its id: stretches of audio have none."""
    return segment_id.rpartition("-")[2][:1] != "a"


def item_id(owner_id: str, ordinal: int) -> str:
    """Id of the n-th thing found in a segment (a box, a face, a line, an utterance)."""
    return f"{owner_id}-{ordinal:04d}"


def vector_id(text_id: str) -> int:
    """Signed 64-bit id of a row of an index, from the item's own id and never from the order of adding."""
    return int.from_bytes(hashlib.sha256(text_id.encode()).digest()[:8], "big", signed=False) >> 1


class Digest:
    """A hash of texts that come one by one: each is preceded by its length, so that no two lists share a reading."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, text: str) -> None:
        """Add one text."""
        raw = text.encode("utf-8")
        self._sha256.update(len(raw).to_bytes(8, "big") + raw)

    @property
    def text(self) -> str:
        """16 hex digits: recipes, generations and fingerprints are named by them."""
        return self._sha256.hexdigest()[:16]


def short_hash(*parts: str) -> str:
    """Return the digest of these texts."""
    digest = Digest()
    for part in parts:
        digest.add(part)
    return digest.text
