# SPDX-License-Identifier: Apache-2.0
"""Recognize URIs, split and join them, and remove credentials from them."""

import re
from urllib.parse import urlsplit, urlunsplit

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/\s\"]*)@")
# In these schemes, a name without a password is the name of a container.
_CONTAINERS = ("abfs", "abfss")
_SECRET = re.compile(
    r"(?i)(?<=[?&])([^=&\s]*(?:token|secret|key|password|signature)[^=&\s]*)=[^&\s]*"
)


def is_uri(text: str) -> bool:
    """Return whether `text` begins with a scheme (``s3://…``) and therefore is not a path."""
    return bool(_URI.match(text))


def redact_uri(uri: str) -> str:
    """Return the URI without user, password and query, so that it is safe to print and store."""
    if not is_uri(uri):
        return uri
    return remove_credentials(urlunsplit(urlsplit(uri)._replace(query="")))


def remove_credentials(text: str, replacement: str = "") -> str:
    """Remove the credentials of all URIs in a text, such as the error of another library.

    Args:
        text: any text.
        replacement: what to write in place of the credentials.
    """

    def replace_user(match: re.Match[str]) -> str:
        scheme, user = match.groups()
        if scheme in _CONTAINERS and ":" not in user:
            return match[0]
        return f"{scheme}://{replacement}"

    return _SECRET.sub(rf"\1={replacement}", _USER.sub(replace_user, text))


def join_uri(uri: str, name: str) -> str:
    """Return the URI or path of `name` in a folder, keeping the query of the folder's URI."""
    if not is_uri(uri):
        return f"{uri.rstrip('/')}/{name}"
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def get_parent_uri(uri: str) -> str:
    """Return the URI of the folder that holds a file."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]))


def get_base_name(uri: str) -> str:
    """Return the last name in the path of a URI, or an empty string if the path is empty."""
    return urlsplit(uri).path.rstrip("/").rpartition("/")[2]


def add_to_query(uri: str, **options: str) -> str:
    """Return a URI with options added to its query. Options that it already has are kept."""
    parts = urlsplit(uri)
    items = [item for item in parts.query.split("&") if item]
    names = {item.partition("=")[0] for item in items}
    added = [f"{name}={value}" for name, value in options.items() if name not in names]
    return urlunsplit(parts._replace(query="&".join([*items, *added])))
