# SPDX-License-Identifier: Apache-2.0
"""Storage that is away may answer in a moment: what is tried again, and how its errors are told."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from ray_embed.core.uri import redact_uri, remove_credentials
from ray_embed.errors import StorageError, get_first_line

Result = TypeVar("Result")

# What pyarrow's file systems begin their errors with.
_STORES = re.compile(r"AWS Error|google::cloud::Status|Azure|HDFS|GcsFileSystem")
# Nobody there, or no such host: pyarrow itself has tried for some seconds.
_FOR_GOOD = re.compile(
    r"curlCode: [67]\b|"
    r"ACCESS_DENIED|NO_SUCH_|INVALID_|UNRECOGNIZED_CLIENT|EXPIRED|Expired|SIGNATURE"
    r"|HTTP status 40[134]|PERMISSION_DENIED|UNAUTHENTICATED|Authentication|Authorization"
)
_CREDENTIALS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|EXPIRED|Expired"
    r"|SIGNATURE|InvalidToken|PERMISSION_DENIED|UNAUTHENTICATED|Authentication"
)
_TRIES, _SECONDS = 6, 20.0


def is_storage_error(error: Exception) -> bool:
    """Whether an error is of the storage, and not of what was read from it, or missing."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return True
    return _comes_from_store(error)


def call_with_retries(operation: Callable[[], Result]) -> Result:
    """Do something with an object store; again, and later each time, where it fails in passing.

    The whole of it is done again, so it must be such that may be done twice.

    Raises:
        OSError: as it does, for good or for some seconds.
    """
    import tenacity

    again = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_temporary),
        wait=tenacity.wait_random_exponential(0.5, max=10),
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(_TRIES), tenacity.stop_after_delay(_SECONDS)
        ),
        reraise=True,
    )
    return again(operation)


def _is_temporary(error: BaseException) -> bool:
    return _comes_from_store(error) and not _FOR_GOOD.search(str(error))


def _comes_from_store(error: BaseException) -> bool:
    # pyarrow has one class for all of them, and gives them no number. With one, the words may be
    # those of a file's name.
    return isinstance(error, OSError) and error.errno is None and bool(_STORES.search(str(error)))


@contextlib.contextmanager
def wrap_os_errors(path: str, doing: str) -> Iterator[None]:
    """Let an error of the storage say which file it was about, and what was tried.

    Raises:
        StorageError: instead of OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{redact_uri(path)}: cannot be {doing}: {explain_error(error)}"
        ) from error


def explain_error(error: OSError) -> str:
    """Say what the storage said, without secrets, and what helps where it knows nobody."""
    if error.strerror:
        return error.strerror
    text = remove_credentials(get_first_line(error))
    if not _CREDENTIALS.search(text):
        return text
    return (
        f"{text}; it takes credentials to be missing, expired or not enough: look at those that "
        "this machine, and each node of a cluster, has for it (for S3 AWS_PROFILE, AWS_* "
        "variables, ~/.aws, or the machine's role)"
    )
