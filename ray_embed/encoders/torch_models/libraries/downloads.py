# SPDX-License-Identifier: Apache-2.0
"""Explain why the files of a model could not be downloaded."""

import re
from collections.abc import Iterator

from ray_embed.errors import InputError, strip_ansi

HUB_PAGES = "https://huggingface.co"
_URL = re.compile(r"https?://[^\s'\"<>]+[^\s'\"<>.,;:)]")
# Errors of the packages that download: by module, because they may not be installed.
_PACKAGES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3", "urllib")
_MAX_REASON = 300


def explain_download(error: BaseException, where: str, fix: str) -> InputError | None:
    """Return an error for the user if a download failed, or None if something else did.

    Args:
        error: what the library raised.
        where: what the message begins with.
        fix: how to go on without a network.
    """
    failed = [each for each in _list_causes(error) if _is_of_download(each)]
    if not failed:
        return None
    names = {type(each).__name__ for each in failed}
    texts = [strip_ansi(str(each)) for each in failed]
    if "GatedRepoError" in names:
        fix = f"accept the conditions on its page and log in (`hf auth login`); or {fix}"
    url = next((found[0] for text in texts if (found := _URL.search(text))), None)
    reason = " ".join(texts[-1].split())[:_MAX_REASON]
    return InputError(
        f"{where}: its files cannot be downloaded{f' from {url}' if url else ''}: {reason}\n"
        f"check the name and the network; without a network, {fix}"
    )


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _is_of_download(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in _PACKAGES or isinstance(error, (ConnectionError, TimeoutError))
