# SPDX-License-Identifier: Apache-2.0
"""Parts of URIs, and the removal of credentials from them."""

import pytest

from ray_embed.core import uri


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a", "runs/a"),
        ("s3://bucket/run", "s3://bucket/run"),
        ("s3://key:secret@bucket/run?region=x", "s3://bucket/run"),
        ("abfs://container@account/run?sas_token=x", "abfs://container@account/run"),
        ("abfss://account:key@container/run", "abfss://container/run"),
    ],
)
def test_redacted_uri_has_no_user_and_no_query(given, expected):
    assert uri.redact_uri(given) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see s3://key:secret@bucket/run, please", "see s3://***@bucket/run, please"),
        ("abfs://c/x?sas_token=abc&x=1", "abfs://c/x?sas_token=***@&x=1"),
        ("s3://b/x?region=r&secret_key=abc", "s3://b/x?region=r&secret_key=***@"),
        ("go on with abfs://c@a/x", "go on with abfs://c@a/x"),
        ("mail me@example.com", "mail me@example.com"),
    ],
)
def test_credentials_in_a_text_are_replaced(text, expected):
    assert uri.remove_credentials(text, "***@") == expected


def test_parts_of_a_uri():
    with_query = "s3://k:s@bucket/a/list.csv?region=x"
    assert uri.get_parent_uri(with_query) == "s3://k:s@bucket/a?region=x"
    assert uri.join_uri("s3://k:s@bucket/a/?region=x", "b c") == "s3://k:s@bucket/a/b c?region=x"
    assert uri.join_uri("runs/a/", "features") == "runs/a/features"
    assert uri.get_base_name(with_query) == "list.csv"
    assert uri.get_base_name("s3://bucket") == ""
    assert uri.add_to_query("s3://b/x", a="1") == "s3://b/x?a=1"
    assert uri.add_to_query("s3://b/x?a=2&c=3", a="1") == "s3://b/x?a=2&c=3"
