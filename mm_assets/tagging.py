"""Tags from a taxonomy: names with prompts, whose text vectors are compared with the vectors of images.

Put here: the taxonomy's file format, its frozen vectors, the judgement. Keep out: the model that encodes prompts, and
where a frozen taxonomy is stored.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mm_assets.errors import ConfigError, SchemaError
from mm_assets.identity import short_hash
from mm_assets.vectors import Floats, as_unit_vectors, from_arrow, parameters_of, to_arrow

MAX_CHARACTERS = 1 << 20
_MAX_DEPTH = 16
_PROMPTS = "prompt vectors"  # the name in messages
_OPPOSED = 1e-3
_METADATA = b"mm_assets.taxonomy"

Mode = Literal["threshold", "best"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500, strict=True)]
Threshold = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, strict=True)]
Bools = npt.NDArray[np.bool_]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _NamedPart(_Part):
    name: Text


class Tag(_NamedPart):
    """One tag: its prompts say in words what the images show; its threshold, where given, wins over the group's."""

    prompts: Annotated[tuple[Text, ...], Field(min_length=1)]
    threshold: Threshold | None = None


class TagGroup(_NamedPart):
    """Tags that belong together.

    Attributes
    ----------
    mode : ``threshold`` gives every tag at or above its threshold; ``best`` only the most similar, and that only when
        it is at or above its threshold
    threshold : lowest cosine, -1…1
    """

    mode: Mode
    threshold: Threshold
    tags: Annotated[tuple[Tag, ...], Field(min_length=1)]


class Taxonomy(_Part):
    """What can be tagged, as written by people."""

    groups: Annotated[tuple[TagGroup, ...], Field(min_length=1)]

    @classmethod
    def from_yaml(cls, text: str) -> "Taxonomy":
        """Read ``groups: [{name, mode, threshold, tags: [{name, prompts, threshold?}]}]``.

        Raises
        ------
        ConfigError
            Names the line and the part that is wrong, or the name that occurs twice.
        """
        root, content = _parse(text)
        try:
            taxonomy = cls.model_validate(content)
        except ValidationError as error:
            faults = [_locate(root, fault["loc"], fault["msg"]) for fault in error.errors()]
            raise ConfigError("the taxonomy is wrong:\n" + "\n".join(faults)) from error
        _require_unique_names(root, taxonomy.groups, ("groups",))
        for place, group in enumerate(taxonomy.groups):
            _require_unique_names(root, group.tags, ("groups", place, "tags"))
        return taxonomy

    @property
    def digest(self) -> str:
        """Short hash of the content; comments and layout of the file do not matter."""
        return short_hash("taxonomy", self.model_dump_json())

    def members(self) -> Iterator[tuple[TagGroup, Tag]]:
        """Yield every tag with its group, in the order of the file."""
        return ((group, tag) for group in self.groups for tag in group.tags)

    def freeze(self, encode_texts: Callable[[list[str]], Floats]) -> "FrozenTaxonomy":
        """Turn each tag into one unit vector: the direction of the mean of its prompts' vectors.

        Parameters
        ----------
        encode_texts : n prompts to (n, d) unit vectors in the space of the images; called once

        Raises
        ------
        ConfigError
            The prompts of a tag cancel each other out.
        SchemaError
            ``encode_texts`` does not return one unit vector for each prompt.
        """
        tags = [tag for _, tag in self.members()]
        prompts = [prompt for tag in tags for prompt in tag.prompts]
        encoded = as_unit_vectors(encode_texts(prompts))
        if len(encoded) != len(prompts):
            raise SchemaError(_PROMPTS, f"{len(prompts)} rows", f"{len(encoded)} rows")
        ends = np.cumsum([len(tag.prompts) for tag in tags])
        parts = np.split(encoded, ends[:-1])
        return FrozenTaxonomy(self, np.stack([_direction(tag, part) for tag, part in zip(tags, parts, strict=True)]))


@dataclass(frozen=True, eq=False)
class FrozenTaxonomy:
    """A taxonomy with a unit vector for each tag.

    Attributes
    ----------
    vectors : (n_tags, d) in the order of ``taxonomy.members()``
    """

    taxonomy: Taxonomy
    vectors: Floats

    @property
    def digest(self) -> str:
        """Short hash of the taxonomy and its vectors: another text model is another digest."""
        return short_hash(self.taxonomy.digest, self.vectors.tobytes().hex())

    def judge(self, vectors: Floats) -> pa.Table:
        """Return the tags of each vector.

        Parameters
        ----------
        vectors : (n, d) unit vectors of images; not written to

        Returns
        -------
        One row per tag given, ordered by row, then as in the taxonomy: ``row`` int64 (of the argument), ``tag``,
        ``tag_group``, ``similarity`` float32 cosine.

        Raises
        ------
        SchemaError
            Not unit vectors of this dimension.
        """
        similarity = as_unit_vectors(vectors, self.vectors.shape[1]) @ self.vectors.T
        rows, columns = np.nonzero(self._is_given(similarity))
        names = pa.array([tag.name for _, tag in self.taxonomy.members()], pa.string())
        groups = pa.array([group.name for group, _ in self.taxonomy.members()], pa.string())
        return pa.table(
            {
                "row": pa.array(rows, pa.int64()),
                "tag": names.take(pa.array(columns)),
                "tag_group": groups.take(pa.array(columns)),
                "similarity": pa.array(similarity[rows, columns], pa.float32()),
            }
        )

    def to_table(self) -> pa.Table:
        """One row per tag, with the whole taxonomy in the schema's metadata."""
        members = list(self.taxonomy.members())
        columns = {
            "tag": pa.array([tag.name for _, tag in members], pa.string()),
            "tag_group": pa.array([group.name for group, _ in members], pa.string()),
            "vector": to_arrow(self.vectors),
        }
        return pa.table(columns).replace_schema_metadata({_METADATA: self.taxonomy.model_dump_json()})

    @classmethod
    def from_table(cls, table: pa.Table) -> "FrozenTaxonomy":
        """Undo ``to_table``, bit for bit."""
        return cls(Taxonomy.model_validate_json(parameters_of(table, _METADATA)), from_arrow(table["vector"]))

    def _is_given(self, similarity: Floats) -> Bools:
        limits = [group.threshold if tag.threshold is None else tag.threshold for group, tag in self.taxonomy.members()]
        given: Bools = similarity >= np.array(limits, np.float32)
        start = 0
        for group in self.taxonomy.groups:
            part = slice(start, start + len(group.tags))
            if group.mode == "best":
                best = similarity[:, part].argmax(axis=1)
                given[:, part] &= np.arange(len(group.tags)) == best[:, None]
            start = part.stop
        return given


def _direction(tag: Tag, vectors: Floats) -> Floats:
    mean = vectors.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(mean)
    if length < _OPPOSED:
        msg = f"the prompts of tag {tag.name!r} cancel each other out; make two tags of them"
        raise ConfigError(msg)
    unit: Floats = (mean / length).astype(np.float32)
    return unit


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the tree (which knows the lines) and its content."""
    if len(text) > MAX_CHARACTERS:
        msg = f"the taxonomy has {len(text)} characters; at most {MAX_CHARACTERS} are read"
        raise ConfigError(msg)
    try:
        _refuse_tricks(text)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _require_unique_keys(root)
        return root, loader.construct_document(root) if root else None
    except (yaml.YAMLError, ValueError) as error:
        msg = f"the taxonomy cannot be read as YAML: {error}"
        raise ConfigError(msg) from error


def _refuse_tricks(text: str) -> None:
    """Aliases make small files huge, and deep nesting exhausts the stack; both show in the flat list of events."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            found = "an alias" if isinstance(event, yaml.AliasEvent) else "lists within lists"
            msg = f"line {_line(event)}: {found}; write the taxonomy out plainly"
            raise ConfigError(msg)


def _require_unique_keys(node: yaml.Node | None) -> None:
    """Refuse what YAML forbids and PyYAML lets pass: a key written twice, of which the first would be lost."""
    if isinstance(node, yaml.MappingNode):
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        counts = Counter(key.value for key in keys)
        twice = [key for key in keys if counts[key.value] > 1]
        if twice:
            msg = f"line {_line(twice[-1])}: {twice[-1].value!r} is written twice; keep one"
            raise ConfigError(msg)
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _require_unique_keys(part)


def _line(place: yaml.Node | yaml.Event | None) -> int:
    return place.start_mark.line + 1 if place and place.start_mark else 1


def _locate(root: yaml.Node | None, place: Sequence[int | str], message: str) -> str:
    """Say where a fault is: line, path, and the names of the group and tag on the way."""
    node, names = root, []
    for step in place:
        child = _child(node, step)
        if child is None:
            break
        node = child
        name = _child(node, "name")
        names += [repr(name.value)] if isinstance(name, yaml.ScalarNode) else []
    path = ".".join(map(str, place)) or "file"
    return f"  line {_line(node)}: {path}{' in ' if names else ''}{' / '.join(names)}: {message}"


def _child(node: yaml.Node | None, step: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    return None


def _require_unique_names(root: yaml.Node | None, parts: Sequence[_NamedPart], place: tuple[int | str, ...]) -> None:
    name, count = Counter(part.name for part in parts).most_common(1)[0]
    if count > 1:
        last = max(index for index, part in enumerate(parts) if part.name == name)
        raise ConfigError("the taxonomy is wrong:\n" + _locate(root, (*place, last), f"the name occurs {count} times"))
