"""Clients for S3-compatible services, and stores from settings.

Put here: how a client is configured so that Backblaze B2, Tigris, R2, Ceph and Amazon all take its requests.
Keep out: requests, retries and listings, which are ``mm_assets.buckets``'.
"""

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader
from botocore.session import Session
from dagster_aws.s3 import S3Resource
from pydantic import Field

from mm_assets.buckets.base import Store
from mm_assets.buckets.local import LocalStore
from mm_assets.buckets.retry import Retry
from mm_assets.buckets.s3 import S3Store
from mm_assets.buckets.traffic import Traffic
from mm_assets.errors import ConfigError
from mm_assets.settings import Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SPARE_CONNECTIONS = 4


class BucketS3Resource(S3Resource):
    """dagster-aws's ``S3Resource`` whose client also suits services other than Amazon's.

    A secret given as a field shows in Dagster's UI: bind this with a profile or boto3's own chain of keys, and leave
    explicit secrets to ``open_store``, which reads them from the settings.
    """

    addressing_style: Literal["path", "virtual"] = Field(default="path", description="path works everywhere")
    max_attempts: int = Field(
        default=1, description="one: the store itself tries again, and unlike boto3 obeys Retry-After"
    )
    connect_timeout_s: float = Field(default=5, description="seconds to wait for a connection")
    read_timeout_s: float = Field(default=60, description="seconds to wait for the next bytes")
    workers: int = Field(default=16, description="threads that share the client")

    @classmethod
    def from_location(cls, location: Location) -> "BucketS3Resource":
        """Take endpoint, region, addressing and keys from the settings of a bucket."""
        return cls(
            endpoint_url=location.endpoint_url,
            region_name=location.region,
            addressing_style=location.addressing_style,
            profile_name=location.profile,
            aws_access_key_id=location.access_key_id,
            aws_secret_access_key=location.secret_access_key,
        )

    def get_client(self) -> "S3Client":
        """Return a new client, safe to share between threads.

        Raises
        ------
        ConfigError
            There are no keys, no such profile, or an endpoint that is no URL.
        """
        try:
            session = self._session()
            return session.client("s3", config=self._config(), **self._endpoint())
        except (BotoCoreError, ValueError) as error:
            msg = f"no S3 client can be made: {error}; check endpoint_url (https://…), region and profile"
            raise ConfigError(msg) from error

    def _session(self) -> boto3.Session:
        session = boto3.Session(
            botocore_session=_new_session(),
            profile_name=self.profile_name,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
        )
        is_half = (self.aws_access_key_id is None) != (self.aws_secret_access_key is None)
        if is_half or (not self.use_unsigned_session and session.get_credentials() is None):
            raise ConfigError(self._no_keys())
        return session

    def _no_keys(self) -> str:
        return (
            f"no keys, or half of a pair, for {self.endpoint_url or 'Amazon S3'}: set access_key_id and "
            "secret_access_key of the source or lake (MM_ASSETS_LAKE__ACCESS_KEY_ID, "
            "MM_ASSETS_LAKE__SECRET_ACCESS_KEY), a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )

    def _endpoint(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.endpoint_url,
            "region_name": self.region_name,
            "use_ssl": self.use_ssl,
            "verify": self.verify,
        }

    def _config(self) -> Config:
        return Config(
            signature_version=UNSIGNED if self.use_unsigned_session else "s3v4",
            s3={"addressing_style": self.addressing_style},
            # The checksum headers that boto3 sends by default are refused or misread by services other than Amazon's.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": self.max_attempts},
            connect_timeout=self.connect_timeout_s,
            read_timeout=self.read_timeout_s,
            max_pool_connections=self.workers + _SPARE_CONNECTIONS,
            tcp_keepalive=True,
            user_agent_extra=f"mm_assets/{version('mm-assets')}",
        )


def _new_session() -> Session:
    session = Session()
    session.register_component("data_loader", _loader())
    return session


class _SharedLoader(Loader):
    """Reads models of services; keeps its places although each session of boto3 appends one, of models not needed here."""

    @property
    def search_paths(self) -> list[str]:
        """A copy of the places."""
        return list(super().search_paths)


@cache
def _loader() -> _SharedLoader:
    """Return the loader of all sessions: each by itself would read the models again, for 0.1 to 0.2 s."""
    return _SharedLoader()


def open_store(
    location: Location,
    *,
    name: str = "",
    traffic: Traffic | None = None,
    retry: Retry | None = None,
    server_side_encryption: str | None = None,
    create: bool = False,
) -> Store:
    """Return the store of a source or the lake; opens no connection (``Store.check`` does).

    Parameters
    ----------
    name : labels the store's requests in the metrics: a source's alias or ``lake``; default: its URI
    traffic : what the stores of this process share: request rates, breakers, counts; default: this store is alone
    retry : how long failures of a bucket's service are borne; default: five minutes for each request
    server_side_encryption : asked for on every write to a bucket
    create : a missing folder is an empty store (a lake); otherwise it is an error

    Raises
    ------
    ConfigError
        Keys, profile or endpoint are missing or wrong.
    """
    if not location.is_bucket:
        return LocalStore(location.folder, location.uri, create=create)
    client = BucketS3Resource.from_location(location).get_client()
    traffic = traffic or Traffic()
    return S3Store(
        client,
        location.bucket,
        location.prefix,
        server_side_encryption=server_side_encryption,
        retry=retry,
        lane=traffic.lane(name or location.uri, client.meta.endpoint_url, location.bucket),
    )
