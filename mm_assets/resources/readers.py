"""Settings → the lake, and search over it, for those who only read: no ledger, no Dagster run.

Put here: opening for notebooks, the command line and checks. Keep out: questions and answers, which are ``retrieval``'s.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mm_assets.errors import ConfigError
from mm_assets.extractors.packs import load_pack
from mm_assets.extractors.registry import build_extractor, choose_placement, extractor_class, known_steps
from mm_assets.flows.recipes import build_recipes
from mm_assets.lake import Lake
from mm_assets.resources.s3 import BucketS3Resource, open_store
from mm_assets.retrieval import Models, Retriever
from mm_assets.retrieval.evaluation import Evaluation, evaluate
from mm_assets.retrieval.golden import Golden
from mm_assets.settings import Settings, SourceSettings
from mm_assets.spaces import SPACES

_LINK_S = 3_600


def open_lake(settings: Settings) -> Lake:
    """Open the lake alone; opens no connection yet."""
    return Lake(open_store(settings.lake, create=True))


def open_retriever(settings: Settings) -> Retriever:
    """Open search over the lake; a model is loaded at the first question that needs it.

    Raises
    ------
    ConfigError
        A model's weights are missing; names the command that fetches them.
    """
    pack, placement = load_pack(settings.models, settings.models_folder), choose_placement(settings.models)
    models: dict[str, Any] = {step: build_extractor(step, pack, None, placement) for step in _compared_steps(settings)}
    recipes = build_recipes(settings, models)
    visual, face, text = (models[SPACES[name].table] for name in ("visual", "face", "text"))
    used = Models(visual, face, text, recipes)
    return Retriever(open_lake(settings), used, cache=settings.cache, link=Links(settings))


def _compared_steps(settings: Settings) -> list[str]:
    """Return the steps that make vectors, and those that these read where a source asks for them: recipes name both."""
    asked = {step for source in settings.sources for step in source.steps}
    tables = [space.table for space in SPACES.values()]
    read = {step for table in tables for step in extractor_class(table).reads}
    return [step for step in known_steps() if step in tables or step in read & asked]


def evaluate_search(
    settings: Settings, golden: Golden, k: int, report: Callable[[int, int], None] = lambda *_: None
) -> Evaluation:
    """Ask golden queries of the lake's search.

    Parameters
    ----------
    report : told how many of how many queries are answered

    Raises
    ------
    ConfigError
        Nothing is published yet, an expected object is not in the lake, or a query cannot be asked; names the query.
    """
    lake = open_lake(settings)
    rows = lake.read_table("raw_objects", ["bucket", "key"])
    if rows is None:
        msg = f"no tables in {lake.uri} yet; run `mm ingest`"
        raise ConfigError(msg)
    golden.require_objects({name for row in rows.to_pylist() for name in (row["key"], f"{row['bucket']}/{row['key']}")})
    retriever = open_retriever(settings)
    return evaluate(golden, lambda question: retriever.ask(question).rows.to_pylist(), k, report)


class Links:
    """Addresses of objects that a browser can open for an hour: presigned where they lie in a bucket.

    Signing needs the keys of the source, and no request. Without keys here an address is s3://bucket/key, which says
    where the object lies to who may read it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, Any] = {}

    def __call__(self, alias: str, key: str) -> str:
        """Return the address of an object, '' where the settings know no such source."""
        source = next((source for source in self._settings.sources if source.alias == alias), None)
        if source is None or not source.is_bucket or (client := self._client(source)) is None:
            return link_to(self._settings, alias, key)
        named = {"Bucket": source.bucket, "Key": source.prefix + key}
        return str(client.generate_presigned_url("get_object", Params=named, ExpiresIn=_LINK_S))

    def _client(self, source: SourceSettings) -> Any:
        if source.alias not in self._clients:
            try:
                self._clients[source.alias] = BucketS3Resource.from_location(source).get_client()
            except ConfigError:
                self._clients[source.alias] = None
        return self._clients[source.alias]


def link_to(settings: Settings, alias: str, key: str) -> str:
    """Return the address of an object where it needs no signature: of a file in a folder, or s3://bucket/key."""
    source = next((source for source in settings.sources if source.alias == alias), None)
    if source is None:
        return ""
    if not source.is_bucket:
        return Path(source.folder / key).as_uri()
    return f"s3://{source.bucket}/{quote(source.prefix + key)}"
