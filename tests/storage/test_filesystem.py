# SPDX-License-Identifier: Apache-2.0
"""Storage operations on file systems that are not local, and retries."""

import pytest
import tenacity
from pyarrow import fs

from ray_embed.errors import InputError, StorageError
from ray_embed.storage import retry
from ray_embed.storage.filesystem import Folder, locate

TEMPORARY = "When reading: AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 56"
PERMANENT = "When reading: AWS Error ACCESS_DENIED during HeadObject operation: No response body."


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("error", "tries"),
    [(OSError(TEMPORARY), 6), (OSError(PERMANENT), 1), (FileNotFoundError(2, "gone"), 1)],
)
def test_only_temporary_errors_are_retried(error, tries):
    count = 0

    def fail():
        nonlocal count
        count += 1
        raise error

    with pytest.raises(type(error)):
        retry.call_with_retries(fail)
    assert count == tries


def test_result_after_temporary_errors_is_returned():
    answers = iter([OSError(TEMPORARY), OSError(TEMPORARY), "found"])

    def answer():
        result = next(answers)
        if isinstance(result, OSError):
            raise result
        return result

    assert retry.call_with_retries(answer) == "found"


def test_missing_credentials_are_explained():
    assert "credentials" in retry.explain_error(OSError(PERMANENT))
    assert "credentials" not in retry.explain_error(OSError(TEMPORARY))


def test_files_are_renamed_where_they_would_be_seen_half_written():
    """Check file systems that are neither local nor object stores, such as HDFS."""
    filesystem = fs._MockFileSystem()
    folder = Folder(filesystem, "run")
    folder.write("features/part-0.parquet", b"first")
    folder.write("features/part-0.parquet", b"second")
    assert folder.read("features/part-0.parquet") == b"second"
    assert list(folder.list_names("features")) == ["part-0.parquet"]
    assert not folder.list_infos(".tmp")
    folder.delete("features")
    assert not folder.exists("features")
    assert list(folder.list_names("features")) == []


def test_a_local_uri_is_a_local_path(tmp_path):
    folder = Folder.open(f"file://{tmp_path}/a%20b")
    assert folder.is_local
    assert folder.path == f"{tmp_path}/a b"
    assert locate(f"file://{tmp_path}/ünï b") == (folder.filesystem, f"{tmp_path}/ünï b")


def test_errors_name_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/part: cannot be written: "):
        Folder.open(str(tmp_path / "file")).write("part", b"x")
    with pytest.raises(InputError, match=r"^s4://x/y: not a location that can be opened"):
        Folder.open("s4://key:secret@x/y")
