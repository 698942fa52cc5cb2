# SPDX-License-Identifier: Apache-2.0
"""The text of URIs: what is one, its parts, and how it may be shown."""

import re
from urllib.parse import urlsplit, urlunsplit

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/\s\"]*)@")
# In these a name without a password is the container's.
_CONTAINERS = ("abfs", "abfss")
_SECRET = re.compile(
    r"(?i)(?<=[?&])([^=&\s]*(?:token|secret|key|password|signature)[^=&\s]*)=[^&\s]*"
)


def is_uri(text: str) -> bool:
    """Whether `text` names a scheme (``s3://…``), not a path."""
    return bool(_URI.match(text))


def redact_uri(uri: str) -> str:
    """Give the URI as it may be printed and stored: without user, password and query."""
    if not is_uri(uri):
        return uri
    return remove_credentials(urlunsplit(urlsplit(uri)._replace(query="")))


def remove_credentials(text: str, instead: str = "") -> str:
    """Give a text, another library's error say, without passwords and the like of URIs in it."""

    def masked(found: re.Match[str]) -> str:
        scheme, user = found.groups()
        if scheme in _CONTAINERS and ":" not in user:
            return found[0]
        return f"{scheme}://{instead}"

    return _SECRET.sub(rf"\1={instead}", _USER.sub(masked, text))


def join_uri(uri: str, name: str) -> str:
    """Give the URI (or path) of `name` in the folder `uri`; what opens the one opens the other."""
    if not is_uri(uri):
        return f"{uri.rstrip('/')}/{name}"
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def get_parent_uri(uri: str) -> str:
    """Give the URI of the folder that a URI's file is in."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]))


def get_base_name(uri: str) -> str:
    """Give the last name of a URI's path; empty where it has none."""
    return urlsplit(uri).path.rstrip("/").rpartition("/")[2]


def add_to_query(uri: str, **options: str) -> str:
    """Give a URI with options in its query, unless they are there."""
    parts = urlsplit(uri)
    given = [item for item in parts.query.split("&") if item]
    names = {item.partition("=")[0] for item in given}
    added = [f"{name}={value}" for name, value in options.items() if name not in names]
    return urlunsplit(parts._replace(query="&".join([*given, *added])))
