"""Settings of a queue on Amazon SQS."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.broker_queue import BrokerQueueConfig
from llama_deploy.message_queues.urls import UrlForm

_CREDENTIALS: Final = frozenset({"aws_access_key_id", "aws_secret_access_key", "aws_session_token"})
_REGION: Final = r"^[a-z0-9-]+$"
_FORM: Final = UrlForm(
    expected="aws://region, aws+http://host:port?region=... or aws+https:// is expected",
    schemes={"aws", "aws+http", "aws+https"},
    arguments={"region"},
)
_ENDPOINT: Final = UrlForm(
    expected="http://host:port or https://host, without credentials", schemes={"http", "https"}
)


class AWSMessageQueueConfig(BrokerQueueConfig):
    """Settings of a queue on Amazon SQS. Environment variables begin with `AWS_SQS_`, but for `AWS_REGION`.

    Without credentials here the SDK looks for them where it always does: in `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, in the profile of `AWS_PROFILE`, in the role of the
    container or of the machine.
    """

    model_config = SettingsConfigDict(env_prefix="AWS_SQS_", populate_by_name=True)

    credential_fields: ClassVar[frozenset[str]] = _CREDENTIALS
    type: Literal["aws"] = "aws"
    """Identifies the backend."""
    url: str | None = None
    """Sets some of the fields below, unless they are given: `aws://us-east-1`, or
    `aws+http://127.0.0.1:5000?region=us-east-1`, `aws+https://...` for another endpoint.
    After construction it is None."""
    aws_region: str = Field(
        default="us-east-1",
        pattern=_REGION,
        validation_alias=AliasChoices("aws_region", "aws_default_region"),
    )
    """The region of the queues. From the environment it is `AWS_REGION` or `AWS_DEFAULT_REGION`."""
    aws_access_key_id: str | None = Field(default=None, repr=False)
    """Names the credentials; goes with `aws_secret_access_key`. None: the SDK finds credentials. Never leaves
    the process, as little as the next two."""
    aws_secret_access_key: SecretStr | None = None
    """The secret of `aws_access_key_id`."""
    aws_session_token: SecretStr | None = None
    """Belongs to temporary credentials. None: they are not temporary."""
    endpoint_url: str | None = None
    """Where the service is, for one that is compatible with SQS, or a VPC endpoint. None: where the SDK says
    that the region's is."""
    queue_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,20}$")
    """Begins the names of all queues; keeps installations apart that share an account and a namespace."""
    retention_seconds: int = Field(default=1_209_600, ge=60, le=1_209_600)
    """How long a new queue keeps a message that is not acknowledged. At most, and by default, 14 days."""
    wait_seconds: int = Field(default=20, ge=1, le=20)
    """How long one request waits at the service for a message. A shorter wait costs more requests."""
    group_seconds: float = Field(default=5.0, ge=0, le=60)
    """How long a publisher caches which groups exist. Creating a group takes as long, so that all publishers
    know of it: use the same value in all processes. 0: each publication asks."""
    timeout: float = Field(default=5.0, gt=0)
    """Seconds for an answer, beyond `wait_seconds` where a request waits."""
    visibility_timeout: int = Field(default=10, ge=1, le=43_200)  # the service knows whole seconds
    """Seconds after which a delivery that is neither settled nor extended comes back, from a dead member
    too."""

    @classmethod
    def fields_in(cls, url: str) -> dict[str, Any]:
        """Find the region, the endpoint and the credentials; the URL itself is not kept."""
        return dict(_found_in(url))

    @field_validator("endpoint_url")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = _ENDPOINT.parse(value)
            is_valid = bool(url.address.host) and "@" not in value
        except ValueError:
            is_valid = False
        if not is_valid:
            raise ValueError(f"endpoint_url is {_ENDPOINT.expected}")
        return value

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if (self.aws_access_key_id is None) != (self.aws_secret_access_key is None):
            raise ValueError("aws_access_key_id and aws_secret_access_key go together")
        return self

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return settings from a URL as `url` takes it; `sqs://region` is read as `aws://region`."""
        return super().from_url(re.sub(r"^sqs://", "aws://", url))

    @classmethod
    def fields_set_by(cls, url: str) -> set[str]:
        """A key in the URL excludes the session token of the environment."""
        said = set(_found_in(url))
        return said | (_CREDENTIALS if said & _CREDENTIALS else set())

    @property
    def address(self) -> str:
        """The URL of the service, without credentials."""
        if self.endpoint_url is None:
            return f"aws://{self.aws_region}"
        return f"aws+{self.endpoint_url}?region={self.aws_region}"

    @property
    def client_options(self) -> dict[str, Any]:
        """Arguments of the SDK's clients, the secrets among them."""
        secret, token = self.aws_secret_access_key, self.aws_session_token
        return {
            "region_name": self.aws_region,
            "endpoint_url": self.endpoint_url,
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": secret.get_secret_value() if secret else None,
            "aws_session_token": token.get_secret_value() if token else None,
        }

    async def connect(self) -> AbstractMessageQueue:
        """Connect, and ask the service for the groups."""
        # The queue is made from these settings, so the import cannot stand above.
        from llama_deploy.message_queues.aws.queue import AWSMessageQueue  # noqa: PLC0415

        return await AWSMessageQueue.connect(self)


def _found_in(text: str) -> dict[str, str]:
    """Return the fields that a URL says.

    Raises:
        ValueError: The URL cannot work.
    """
    url = _FORM.parse(text)
    address = url.address
    region, endpoint = address.query.get("region"), None
    if address.scheme == "aws":
        region = address.netloc or region
        is_valid = bool(region) and not address.path.strip("/")
    else:
        endpoint = f"{address.scheme.removeprefix('aws+')}://{address.netloc}{address.path}"
        is_valid = bool(address.host)
    if not is_valid or (region is not None and not re.fullmatch(_REGION, region)):
        raise _FORM.invalid()
    found = {
        "aws_region": region,
        "endpoint_url": endpoint,
        "aws_access_key_id": url.username,
        "aws_secret_access_key": url.password or None,
    }
    return {name: value for name, value in found.items() if value is not None}
