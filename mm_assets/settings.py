"""All settings: one ``mm_assets.yaml`` plus ``MM_ASSETS_*`` variables (which win; ``__`` nests).

Put here: what a user can set, its default and its bounds. Keep out: anything that opens a file, bucket or database
other than the settings file itself. This is the only module that reads the environment.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from mm_assets.errors import ConfigError
from mm_assets.limits import MIB, MediaLimits, Section
from mm_assets.schemas import STEP_TABLES
from mm_assets.settings_faults import explain_faults

CONFIG_NAME = "mm_assets.yaml"
CONFIG_VARIABLE = "MM_ASSETS_CONFIG"
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Location(Section):
    """A folder or a bucket with a prefix."""

    uri: str = Field(description="a folder, or s3://bucket/prefix")
    endpoint_url: str | None = Field(None, description="S3 endpoint, e.g. https://s3.us-west-004.backblazeb2.com")
    region: str | None = Field(None, description="S3 region, e.g. us-west-004")
    addressing_style: Literal["path", "virtual"] = Field("path", description="path works everywhere")
    profile: str | None = Field(None, description="AWS profile that holds the keys")
    access_key_id: str | None = Field(None, description="key id; better as an environment variable")
    secret_access_key: str | None = Field(None, description="secret; better as an environment variable", repr=False)

    @property
    def is_bucket(self) -> bool:
        """True for s3://…, False for a folder."""
        return self.uri.startswith("s3://")

    @property
    def bucket(self) -> str:
        """Bucket name of an s3:// location."""
        return urlsplit(self.uri).netloc

    @property
    def prefix(self) -> str:
        """Key prefix of an s3:// location, '' or ending in '/'."""
        prefix = self.uri.removeprefix("s3://").partition("/")[2].strip("/")
        return f"{prefix}/" if prefix else ""

    @property
    def folder(self) -> Path:
        """Absolute path of a folder location."""
        return Path(self.uri.removeprefix("file://")).expanduser().absolute()

    @field_validator("uri")
    @classmethod
    def _uri_is_known(cls, uri: str) -> str:
        scheme, separator, rest = uri.partition("://")
        if separator and scheme not in {"s3", "file"}:
            msg = f"unknown scheme {scheme}://; write a folder or s3://bucket/prefix"
            raise ValueError(msg)
        if scheme == "s3" and not rest.partition("/")[0]:
            msg = "s3:// needs a bucket name; write s3://bucket/prefix"
            raise ValueError(msg)
        if not uri:
            msg = "empty; write a folder or s3://bucket/prefix"
            raise ValueError(msg)
        return uri


class SourceSettings(Location):
    """A bucket (and prefix) or folder that is watched; only ever read."""

    alias: str = Field(
        "", description="unique name in tables and partition keys; default: the bucket's or folder's name"
    )
    include: tuple[str, ...] = Field(("**",), description="globs on the key below the prefix; ** crosses folders")
    exclude: tuple[str, ...] = Field((), description="globs that win over include")
    min_object_bytes: int = Field(0, ge=0, description="smaller objects are skipped")
    max_object_bytes: int = Field(5 * 1024 * MIB, gt=0, description="larger objects are skipped as too_large")
    steps: tuple[str, ...] = Field(STEP_TABLES, description="steps to run on this source")
    uploads: bool = Field(False, description="let `mm serve` write uploaded objects into this source")
    max_list_calls_per_day: int | None = Field(
        None,
        ge=1,
        description="listing calls a day (GMT); default: 2,000 on Backblaze B2, which bills them, else no limit",
    )

    @model_validator(mode="after")
    def _fill_and_check(self) -> "SourceSettings":
        if not self.alias:
            alias = self.bucket if self.is_bucket else re.sub(r"[^A-Za-z0-9._-]+", "-", self.folder.name).strip("-._")
            object.__setattr__(self, "alias", alias or "source")
        if not _ALIAS.fullmatch(self.alias):
            msg = f"alias {self.alias!r}: use 1-63 letters, digits, '.', '_' or '-'"
            raise ValueError(msg)
        unknown = sorted(set(self.steps) - set(STEP_TABLES))
        if unknown:  # only then is all that is installed looked through
            unknown = sorted(set(unknown) - _steps_of_plugins())
        if unknown:
            msg = f"unknown steps {', '.join(unknown)}; known: {', '.join(STEP_TABLES)}"
            raise ValueError(msg)
        return self


def _steps_of_plugins() -> set[str]:
    from importlib.metadata import entry_points

    return {point.name for point in entry_points(group="mm_assets.extractors")}


class LakeSettings(Location):
    """Where results go; never a source."""

    server_side_encryption: Literal["AES256", "aws:kms"] | None = Field(None, description="asked for on every write")


class ModelSettings(Section):
    """Which weights are used."""

    pack: str = Field("demo", description="demo | standard | path of a folder with a pack.yaml")
    folder: Path | None = Field(None, description="where `mm models pull` puts weights; default: <state>/models")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where torch sees it")
    threads: int = Field(0, ge=0, description="CPU threads of the models; 0 = all cores")
    batch_size: int = Field(32, ge=1, le=4096, description="segments in one call of a model")


class RunSettings(Section):
    """How objects are grouped into runs, and how often an object is tried."""

    batch_objects: int = Field(128, ge=1, le=100_000, description="object versions in one run")
    decode_workers: int = Field(0, ge=0, le=64, description="decoding children at once; 0 = number of cores")
    max_tries: int = Field(3, ge=1, description="tries for faults that the object caused and a retry may mend")
    max_claims: int = Field(8, ge=1, description="deaths of the worker before an object is given up as crash_loop")
    lease_s: float = Field(900, gt=0, description="a claim older than this, not renewed, is free again")
    dead_letter_alarm: int = Field(100, ge=0, description="more dead letters than this fail the asset check")
    max_live_partitions: int = Field(50_000, ge=100, description="done keys beyond this leave Dagster, not the ledger")


class RefreshSettings(Section):
    """When and how tables, indexes and models of the collection are built."""

    shard_objects: int = Field(2_000, ge=1, description="object versions in one shard of a table")
    min_changed: int = Field(200, ge=1, description="changed objects that ask for a refresh at once")
    max_wait_s: float = Field(900, gt=0, description="age of the oldest change that asks for a refresh")
    exact_index_rows: int = Field(20_000, ge=0, description="up to here the index is exact")
    min_recall: float = Field(0.99, ge=0, le=1, description="recall@10 below which an index is not promoted")
    min_cluster_size: int = Field(5, ge=2, description="HDBSCAN: smallest cluster")
    anomaly_neighbours: int = Field(5, ge=1, description="k of the distance to the k-th neighbour")
    anomaly_percentile: float = Field(0.98, gt=0, lt=1, description="share of the baseline below a flagged score")
    taxonomy: Path | None = Field(None, description="tags and their prompts; default: the model pack's own")
    golden: Path | None = Field(None, description="file of golden queries, asked of each new index; default: none")
    min_golden_recall: float = Field(
        0.9, ge=0, le=1, description="recall@1 of the golden queries below which a check fails"
    )
    gone_brake: float = Field(
        0.2,
        ge=0,
        le=1,
        description="a pass that misses ten objects and a larger share of a source, or all of it, removes nothing",
    )


class KubernetesSettings(Section):
    """Where runs go on a cluster."""

    split_by_device: bool = Field(False, description="decode and OCR on CPU pods, models on GPU pods")


class SqsQueue(Section):
    """A queue of Amazon SQS that a bucket's events go to, directly or through SNS or EventBridge."""

    queue_url: str = Field(description="URL of the queue")
    region: str | None = Field(None, description="AWS region")
    endpoint_url: str | None = Field(None, description="endpoint, where it is not Amazon's")
    profile: str | None = Field(None, description="AWS profile that holds the keys")


class R2Queue(Section):
    """A Cloudflare queue that an R2 bucket's events go to, pulled over HTTP."""

    account_id: str = Field(description="Cloudflare account")
    queue_id: str = Field(description="id of the queue; it needs an HTTP pull consumer")
    api_token: str = Field(
        description="token with queues read and write; better as an environment variable", repr=False
    )
    api_url: str = Field("https://api.cloudflare.com/client/v4", description="Cloudflare's API")


class EventSettings(Section):
    """Who may tell what changed. Events are hints: each becomes a HEAD, and the listing repairs what they miss."""

    b2_secrets: tuple[str, ...] = Field((), description="signing secrets of Backblaze B2's event rules", repr=False)
    tigris_tokens: tuple[str, ...] = Field(
        (), description="what Tigris sends as Bearer token, or user:password of Basic", repr=False
    )
    s3_tokens: tuple[str, ...] = Field(
        (), description="the same for /events/s3: SNS, EventBridge, MinIO, Ceph", repr=False
    )
    sqs: tuple[SqsQueue, ...] = Field((), description="queues of Amazon SQS to pull from")
    r2: tuple[R2Queue, ...] = Field((), description="Cloudflare queues to pull from")
    b2_api_url: str = Field(
        "https://api.backblazeb2.com", description="B2's native API, asked whether rules are suspended"
    )
    max_body_bytes: int = Field(MIB, gt=0, description="larger deliveries are refused")
    max_batch: int = Field(50, ge=1, description="deliveries of more events are refused")

    @field_validator("b2_secrets", "tigris_tokens", "s3_tokens")
    @classmethod
    def _secrets_are_long(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(secret) < 16 for secret in secrets):
            msg = "use at least 16 characters; a short secret can be guessed"
            raise ValueError(msg)
        return secrets


class OidcSettings(Section):
    """An identity provider whose signed tokens (JWT) are taken as keys; needs the extra `oidc`."""

    issuer: str = Field("", description="what `iss` of a token must be, e.g. https://login.example.com; empty = off")
    audience: str = Field("", description="what `aud` of a token must hold")
    jwks_url: str = Field("", description="where the provider's public keys are, https://…/jwks.json")
    rights_claim: str = Field("scope", description="claim with the words search, read, upload, events")

    @model_validator(mode="after")
    def _is_whole(self) -> "OidcSettings":
        if len({bool(value) for value in (self.issuer, self.audience, self.jwks_url)}) > 1:
            msg = "give issuer, audience and jwks_url, or none of them"
            raise ValueError(msg)
        place = urlsplit(self.jwks_url)
        is_here = place.scheme == "http" and place.hostname in {"localhost", "127.0.0.1", "::1"}
        if self.jwks_url and place.scheme != "https" and not is_here:
            msg = "jwks_url must be https://…: who can change the keys on their way can make tokens"
            raise ValueError(msg)
        return self


class ServeSettings(Section):
    """The small server of `mm serve`."""

    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback it needs a key (`mm keys add`)")
    port: int = Field(8787, ge=0, le=65_535, description="0 takes a free one")
    api_keys: tuple[str, ...] = Field(
        (), description="keys with all rights (Bearer); `mm keys add` makes keys with some", repr=False
    )
    requests_per_minute: int = Field(
        600, ge=0, description="questions and reads of one key, or of one address without a key; 0 = any number"
    )
    oidc: OidcSettings = OidcSettings()

    @field_validator("api_keys")
    @classmethod
    def _keys_are_long(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(key) < 16 for key in keys):
            msg = "use at least 16 characters; a short key can be guessed"
            raise ValueError(msg)
        return keys


class ExportSettings(Section):
    """What `mm export` needs to reach stores of others."""

    qdrant_api_key: str | None = Field(
        None, description="key of a Qdrant server; better as an environment variable", repr=False
    )


class Settings(BaseSettings):
    """Everything a user can set."""

    model_config = SettingsConfigDict(
        env_prefix="MM_ASSETS_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,  # it may be a secret, and errors are logged with their causes
    )

    sources: tuple[SourceSettings, ...] = Field((), description="buckets and folders that are watched")
    lake: LakeSettings = Field(LakeSettings(uri="lake"), description="bucket or folder for all results")
    state: Path = Field(Path(".mm_assets"), description="folder for the SQLite ledger, Dagster's storage, caches")
    ledger_url: str | None = Field(None, description="SQLAlchemy URL; default: SQLite below `state`")
    models: ModelSettings = ModelSettings()
    media: MediaLimits = MediaLimits()
    runs: RunSettings = RunSettings()
    refresh: RefreshSettings = RefreshSettings()
    events: EventSettings = EventSettings()
    serve: ServeSettings = ServeSettings()
    export: ExportSettings = ExportSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()

    @classmethod
    def settings_customise_sources(  # the signature is pydantic-settings'
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables win over the file (whose values arrive as init arguments)."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _aliases_are_unique(self) -> "Settings":
        aliases = [source.alias for source in self.sources]
        twice = sorted({alias for alias in aliases if aliases.count(alias) > 1})
        if twice:
            msg = f"two sources are called {', '.join(twice)}; give each its own `alias`"
            raise ValueError(msg)
        return self

    def source(self, alias: str) -> SourceSettings:
        """Return the settings of one source."""
        for source in self.sources:
            if source.alias == alias:
                return source
        known = ", ".join(source.alias for source in self.sources) or "none"
        msg = f"no source is called {alias!r}; known: {known}"
        raise ConfigError(msg)

    @property
    def ledger_location(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger_url or f"sqlite:///{self.state / 'ledger.db'}"

    @property
    def dagster_home(self) -> Path:
        """Where Dagster keeps its runs: DAGSTER_HOME, or a folder below `state`."""
        return Path(os.environ.get("DAGSTER_HOME") or self.state / "dagster")

    @field_validator("ledger_url")
    @classmethod
    def _ledger_url_is_known(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"(sqlite|postgresql|postgresql\+psycopg2)://", url):
            msg = "write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
            raise ValueError(msg)
        return url

    @property
    def cache(self) -> Path:
        """Folder for copies of a lake in a bucket."""
        return self.state / "cache"

    @property
    def models_folder(self) -> Path:
        """Where pulled weights lie."""
        return self.models.folder or self.state / "models"


ConfigFile = Annotated[Path | None, "settings file; None searches MM_ASSETS_CONFIG, then ./mm_assets.yaml"]


def find_config_file(path: ConfigFile = None) -> Path | None:
    """Return the settings file to read; None when there is none and none was asked for."""
    asked = path or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if asked is not None:
        if not asked.is_file():
            msg = f"settings file {asked} does not exist; write one with `mm init`, or point {CONFIG_VARIABLE} at it"
            raise ConfigError(msg)
        return asked.absolute()
    default = Path(CONFIG_NAME)
    return default.absolute() if default.is_file() else None


def load_settings(path: ConfigFile = None) -> Settings:
    """Read the settings file and the environment.

    Relative folders in the file are relative to the file, so that every process sees the same ones.

    Raises
    ------
    ConfigError
        Names the setting and what is wrong with it.
    """
    file = find_config_file(path)
    settings = build_settings(_read_yaml(file) if file else {}, file)
    return _anchor(settings, file.parent if file else Path.cwd())


def build_settings(values: Mapping[str, Any], file: Path | None) -> Settings:
    """Build settings of values, which came from this file, and of the environment; raises ConfigError, which names them."""
    try:
        return Settings(**values)
    except ValidationError as error:
        where = file or "the environment"
        faults = "\n".join(f"  {fault}" for fault in explain_faults(error, Settings))
        msg = f"settings in {where} (or MM_ASSETS_* variables) are wrong:\n{faults}"
        raise ConfigError(msg) from error
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"MM_ASSETS_{field[1].upper()}" if field else "an MM_ASSETS_* variable"
        msg = f"{name}, or a variable whose name begins so, is no JSON, in which lists and sections are written there"
        raise ConfigError(msg) from error


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        msg = f"{file} cannot be read as YAML: {error}"
        raise ConfigError(msg) from error
    if not isinstance(values, dict):
        msg = f"{file} must hold settings by name (`sources:`, `lake:` …); `mm init` writes an example"
        raise ConfigError(msg)
    return values


def _anchor(settings: Settings, base: Path) -> Settings:
    """Make relative folders absolute."""

    def uri_of(location: Location) -> str:
        return (
            location.uri if location.is_bucket else str(base / Path(location.uri.removeprefix("file://")).expanduser())
        )

    sources = tuple(source.model_copy(update={"uri": uri_of(source)}) for source in settings.sources)
    lake = settings.lake.model_copy(update={"uri": uri_of(settings.lake)})
    refresh, models = settings.refresh, settings.models
    for name in ("taxonomy", "golden"):
        if (file := getattr(refresh, name)) is not None:
            refresh = refresh.model_copy(update={name: base / file.expanduser()})
    if models.folder is not None:
        models = models.model_copy(update={"folder": base / models.folder.expanduser()})
    places = {"sources": sources, "lake": lake, "state": base / settings.state.expanduser()}
    return settings.model_copy(update=places | {"refresh": refresh, "models": models})
