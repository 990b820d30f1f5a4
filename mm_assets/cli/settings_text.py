"""The settings as text: every name with its default and meaning, from the models themselves.

Put here: what ``mm init`` writes and ``docs/settings.md`` lists. Keep out: reading settings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mm_assets.settings import LakeSettings, Location, Settings, SourceSettings

_HEAD = """\
# Settings of mm_assets. Relative folders are relative to this file.
#
# A line that starts with "#name:" is a setting with its default: to change it, take away the "#" (and that of the
# section above it). A variable wins over this file: MM_ASSETS_ and the name in capitals, "__" between section and name,
# e.g. MM_ASSETS_MODELS__PACK=standard. An unknown name is an error.
#
# Keys of buckets are better kept out of this file: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a `profile`, or for the
# lake MM_ASSETS_LAKE__ACCESS_KEY_ID and MM_ASSETS_LAKE__SECRET_ACCESS_KEY.
#
# A bucket at Backblaze B2, as source or as lake:
#   uri: s3://my-bucket/prefix
#   endpoint_url: https://s3.us-west-004.backblazeb2.com   (the bucket's page shows its endpoint)
#   region: us-west-004                                    (the part after "s3." of the endpoint)
"""


@dataclass(frozen=True, slots=True)
class SettingText:
    """One setting: its path in the file (``sources[].uri``), default as YAML, and meaning."""

    path: str
    default: str
    meaning: str

    @property
    def variable(self) -> str:
        """Name of the environment variable; '' inside a list, which is given whole."""
        if "[]" in self.path:
            return ""
        return "MM_ASSETS_" + self.path.upper().replace(".", "__")


def list_settings() -> list[SettingText]:
    """List all settings, in the order of the models."""
    return list(_walk(Settings, "", None))


def _walk(model: type[BaseModel], prefix: str, whole: BaseModel | None) -> Iterator[SettingText]:
    """Yield the settings of a section; ``whole`` is the section's own default, where it has one."""
    for name, field in model.model_fields.items():
        path = prefix + name
        section = _section(field)
        item = _item(field)
        if item is not None:
            yield SettingText(path, "[]", field.description or "")
            yield from _walk(item, f"{path}[].", None)
        elif section is not None:
            yield from _walk(section, f"{path}.", field.default)
        else:
            default = _default(field) if whole is None else _yaml(getattr(whole, name))
            yield SettingText(path, default, field.description or "")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    return _as_model(field.annotation)


def _item(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section of which the setting is a list."""
    return _as_model(next(iter(get_args(field.annotation)), None)) if get_origin(field.annotation) is tuple else None


def _as_model(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> str:
    """Return the default as YAML on one line."""
    if field.default is PydanticUndefined:
        return "required"
    return _yaml(field.default)


def _yaml(value: Any) -> str:
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def write_template(sources: Sequence[str], lake: str, service: Mapping[str, str] | None = None) -> str:
    """Write a settings file with these locations; every other setting is there as a comment.

    Parameters
    ----------
    service : settings of the buckets' service, e.g. ``endpoint_url``; given to every s3:// location
    """
    parts = [_HEAD, f"# {Settings.model_fields['sources'].description}", "sources:"]
    for uri in sources:
        parts += _location(SourceSettings, uri, service, "  - ", "    ")
    parts += ["", f"# {Settings.model_fields['lake'].description}", "lake:"]
    parts += [*_location(LakeSettings, lake, service, "  ", "  "), ""]
    for name, field in Settings.model_fields.items():
        section = _section(field)
        if name in {"sources", "lake"}:
            continue
        if section is None:
            parts += [_comment_line("", name, field)]
        else:
            parts += ["", *_comments(section, name, "")]
    return "\n".join(parts) + "\n"


def _comments(section: type[BaseModel], name: str, indent: str) -> Iterator[str]:
    """Yield a section as comments: what it is for, its name, and what is in it."""
    yield f"{indent}# {(section.__doc__ or '').partition(chr(10))[0]}"
    yield f"{indent}#{name}:"
    for key, field in section.model_fields.items():
        below = _section(field)
        if below is None:
            yield _comment_line(f"{indent}  ", key, field)
        else:
            yield from _comments(below, key, f"{indent}  ")


def _location(
    model: type[Location], uri: str, service: Mapping[str, str] | None, first: str, indent: str
) -> Iterator[str]:
    yield f"{first}uri: {_yaml(uri)}"
    given = dict(service or {}) if uri.startswith("s3://") else {}
    for name, field in model.model_fields.items():
        if name in given:
            yield f"{indent}{name}: {_yaml(given[name])}"
        elif name != "uri":
            yield _comment_line(indent, name, field)


def _comment_line(indent: str, name: str, field: FieldInfo) -> str:
    setting = f"{indent}#{name}: {_default(field)}"
    return f"{setting:<48}  # {field.description}"
