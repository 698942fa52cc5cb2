# SPDX-License-Identifier: Apache-2.0
"""What lies in cluster/: Ray and KubeRay accept it, and its versions are those that were tested."""

import re
import zipfile

import jsonschema
import pytest
import yaml
from support import built_wheel
from support.built_wheel import ROOT

CLUSTER = ROOT / "cluster"
# KubeRay's own definition of a RayJob, of which this repository has no copy.
KUBERAY = ROOT.parent / "shared/kuberay/ray.io_rayjobs.yaml"
CLUSTER_FILES = ["aws.yaml", "gcp.yaml", "local.yaml"]


def loaded(name):
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_ray_accepts_the_cluster_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(loaded(name)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**loaded(name), "head_start_ray_command": []}))


@pytest.mark.parametrize("name", CLUSTER_FILES)
def test_all_nodes_get_the_same(name):
    """What the files have in common is the same in each, so that a test of one is one of all."""
    found, usual = loaded(name), loaded("aws.yaml")
    assert found["file_mounts"] == usual["file_mounts"]
    assert found["worker_start_ray_commands"] == usual["worker_start_ray_commands"]
    for at in (0, 2, 4):
        assert found["setup_commands"][at] == usual["setup_commands"][at]


def closed(schema):
    """Let a schema refuse what it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(item) for name, item in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.skipif(not KUBERAY.exists(), reason="KubeRay's definition of a RayJob is not there")
def test_kuberay_accepts_the_ray_job():
    # The loader in Python takes 18 s for it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(KUBERAY.read_text(), loader)
    (schema,) = (
        closed(version["schema"]["openAPIV3Schema"])
        for version in definition["spec"]["versions"]
        if version["name"] == "v1"
    )
    job = loaded("kuberay/rayjob.yaml")
    jsonschema.validate(job, schema)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["toleration"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schema)


def test_versions_are_those_that_were_tested():
    constraints = (ROOT / "constraints.txt").read_text()
    expected = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.M))
    (expected["python"],) = re.findall(r"on Python (3\.\d+)", constraints)
    version_file = (ROOT / "ray_embed/_version.py").read_text()
    (expected["ray_embed"],) = re.findall(r'__version__ = "(.+)"', version_file)
    version_of = re.compile(
        r"\b(python|ray|ray_embed|tensorflow)(?:\[.+?\])?\W{0,2}(\d[\d.]*\d)", re.I
    )
    named = set()
    for path in CLUSTER.rglob("*.*"):
        text = path.read_text().replace("rayVersion: ", "ray:")
        for name, version in version_of.findall(text):
            assert version == expected[name.lower()], path
            named.add((name.lower(), path.name))
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert (
        f"FROM rayproject/ray:{expected['ray']}-py{expected['python'].replace('.', '')}\n"
        in dockerfile
    )
    assert f"/ray_embed:{expected['ray_embed']} " in dockerfile
    assert named >= {
        *(("python", name) for name in (*CLUSTER_FILES, "README.md")),
        *(("ray_embed", name) for name in ("rayjob.yaml", "README.md")),
        ("ray", "rayjob.yaml"),
    }


def test_what_is_installed_is_what_was_tested():
    lines = [
        command
        for name in CLUSTER_FILES
        for of in ("", "worker_")
        for command in loaded(name).get(f"{of}setup_commands", [])
    ]
    lines += (CLUSTER / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    installing = [line for line in lines if "pip install" in line]
    assert len(installing) == 9
    for line in installing:
        assert "--constraint" in line or "--no-deps" in line


def test_wheel_is_whole_and_all_that_the_image_needs(tmp_path):
    built_wheel.make_wheel(tmp_path)
    (wheel,) = tmp_path.glob("ray_embed-*.whl")
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ray_embed").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == package
    assert any(name.endswith("/LICENSE") for name in names)
    (copied,) = re.findall(r"^COPY (.+) \S+$", (CLUSTER / "Dockerfile").read_text(), re.M)
    for pattern in copied.split():
        assert list(tmp_path.glob(pattern)), pattern
