"""Requests to S3: the client of a process, and the repetition of what failed in passing."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from botocore import exceptions as aws
from urllib3.exceptions import HTTPError

from cluster.storage.base import Unreachable

Result = TypeVar("Result")
PASSING_CODES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError"}
    | {"ServiceUnavailable", "ConditionalRequestConflict", "RequestTimeTooSkewed", "BadDigest"}
)
PASSING_ERRORS = (
    aws.ConnectionError,  # cannot be made
    aws.HTTPClientError,  # reset, stalled, closed
    aws.IncompleteReadError,
    aws.ResponseStreamingError,
    aws.FlexibleChecksumError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True)
class S3Config:
    """Retries, and sizes of uploads.

    Attributes:
        attempts: tries of one request before its error is raised.
        first_pause, longest_pause: first and longest pause between tries in seconds; each pause is
            twice the one before, with jitter.
        timeout: seconds without a byte after which a request counts as stalled.
        multipart: size in bytes from which an object is sent in parts; S3 takes at most 5 GiB in
            one piece.
        part: size of a part in bytes.
    """

    attempts: int = 10
    first_pause: float = 0.1
    longest_pause: float = 20.0
    timeout: float = 60.0
    multipart: int = 1 << 30
    part: int = 64 << 20


def repeat(request: Callable[[], Result], config: S3Config, *, store: str, name: str) -> Result:
    """Try until it works, the error is no passing one, or the attempts are used up.

    Args:
        store, name: URL of the store and name of the object, for messages.

    Raises:
        ClientError: the server's answer, for the caller to read.
        Unreachable: no answer, or none but passing faults, in all attempts.
        ValueError: no credentials, or an endpoint that is none.
    """
    pause = config.first_pause
    for attempt in range(1, config.attempts + 1):
        try:
            return request()
        except (aws.NoCredentialsError, aws.PartialCredentialsError) as missing:
            raise ValueError(
                f"{store}: {missing}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "AWS_PROFILE, or run where a role is attached"
            ) from missing
        except aws.ClientError as refused:
            if not _passing(refused):
                raise
            last: Exception = refused
        except PASSING_ERRORS as broken:
            last = broken
        if attempt < config.attempts:
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, config.longest_pause)
    raise Unreachable(
        f"{store}/{name}: no good answer in {config.attempts} attempts, the last: "
        f"{last}; check the network and AWS_ENDPOINT_URL, then run the same command again"
    ) from last


@lru_cache(maxsize=8)
def client(process: int, timeout: float) -> Any:
    """One client a process: connections do not survive a fork."""
    import boto3
    from botocore.config import Config

    patience = {"connect_timeout": min(10.0, timeout), "read_timeout": timeout}
    # Retries are ours alone: botocore's do not cover a body that breaks off.
    return boto3.session.Session().client(
        "s3", config=Config(**patience, retries={"total_max_attempts": 1}, max_pool_connections=64)
    )


def error_code(refused: aws.ClientError) -> str:
    """The code of a server's refusal, such as ``NoSuchKey``."""
    return str(refused.response.get("Error", {}).get("Code", ""))


def _passing(refused: aws.ClientError) -> bool:
    if error_code(refused) in PASSING_CODES:
        return True
    status = refused.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return (status >= 500 and status != 501) or status == 429
