# SPDX-License-Identifier: Apache-2.0
"""Retry operations on object stores, and explain the errors of storage."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from ray_embed.core.uri import redact_uri, remove_credentials
from ray_embed.errors import StorageError, get_first_line

Result = TypeVar("Result")

# How the errors of pyarrow's file systems can be recognized.
_STORE_ERROR = re.compile(r"AWS Error|google::cloud::Status|Azure|HDFS|GcsFileSystem")
# Errors for which a retry does not help. Codes 6 and 7 mean that the host does not exist or does
# not answer, and that pyarrow itself has already tried for some seconds.
_PERMANENT = re.compile(
    r"curlCode: [67]\b|"
    r"ACCESS_DENIED|NO_SUCH_|INVALID_|UNRECOGNIZED_CLIENT|EXPIRED|Expired|SIGNATURE"
    r"|HTTP status 40[134]|PERMISSION_DENIED|UNAUTHENTICATED|Authentication|Authorization"
)
_CREDENTIALS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|EXPIRED|Expired"
    r"|SIGNATURE|InvalidToken|PERMISSION_DENIED|UNAUTHENTICATED|Authentication"
)
_MAX_TRIES, _MAX_SECONDS = 6, 20.0


def is_storage_error(error: Exception) -> bool:
    """Return whether the storage failed; a missing or damaged file is not such an error."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return True
    return _comes_from_store(error)


def call_with_retries(operation: Callable[[], Result]) -> Result:
    """Call an operation on an object store, and repeat it after temporary errors.

    The pauses between tries grow. The whole operation is repeated, so it must be safe to run twice.

    Raises:
        OSError: the error of the operation, if it is permanent or persists for some seconds.
    """
    import tenacity

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_temporary),
        wait=tenacity.wait_random_exponential(0.5, max=10),
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(_MAX_TRIES), tenacity.stop_after_delay(_MAX_SECONDS)
        ),
        reraise=True,
    )
    return retrying(operation)


def _is_temporary(error: BaseException) -> bool:
    return _comes_from_store(error) and not _PERMANENT.search(str(error))


def _comes_from_store(error: BaseException) -> bool:
    # pyarrow raises such errors as OSError without a number. The text of an error with a number may
    # contain these words because they are in a file's name.
    return (
        isinstance(error, OSError) and error.errno is None and bool(_STORE_ERROR.search(str(error)))
    )


@contextlib.contextmanager
def wrap_os_errors(path: str, doing: str) -> Iterator[None]:
    """Turn an OSError raised in the block into a StorageError that names the file.

    Args:
        path: the file, as messages name it.
        doing: what is done with the file, as a past participle such as `read`.

    Raises:
        StorageError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{redact_uri(path)}: cannot be {doing}: {explain_error(error)}"
        ) from error


def explain_error(error: OSError) -> str:
    """Return the text of a storage error without secrets, and a fix if it is about access."""
    if error.strerror:
        return error.strerror
    text = remove_credentials(get_first_line(error))
    if not _CREDENTIALS.search(text):
        return text
    return (
        f"{text}; credentials are missing, expired, or not allowed to do this: check those of this "
        "machine, and of each node of a cluster (for S3: AWS_PROFILE, AWS_* variables, ~/.aws, or "
        "the machine's role)"
    )
