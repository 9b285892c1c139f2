"""Cores: what a container may use, not what the machine has. Over trees as the kernel shows them."""

import os
from pathlib import Path

import numpy as np
import pytest

from ptsa_serve.cores import usable_cores

V1 = "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "29 23 0:26 {shown} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def tree(root: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """A root with /proc/self and control groups; the keys of `files` are paths below /sys/fs/cgroup with + for /."""
    for name, text in {"cgroup": cgroup, "mountinfo": mounts}.items():
        (root / "proc/self").mkdir(parents=True, exist_ok=True)
        (root / "proc/self" / name).write_text(text + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("+", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("1000 1000000", 1),
        ("1600000 100000", 8),
        ("max 100000", 8),
        ("nonsense", 8),
        ("100000 0", 8),
    ],
)
def test_quota_of_version_2_is_rounded_up_to_whole_cores(tmp_path: Path, limit: str, cores: int):
    assert usable_cores(tree(tmp_path, "0::/", V2.format(shown="/"), **{"cpu.max": limit})) == cores


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("50000", 1), ("150000", 2), ("-1", 8), ("0", 8)])
def test_quota_of_version_1(tmp_path: Path, quota: str, cores: int):
    files = {"cpu,cpuacct+cpu.cfs_quota_us": quota, "cpu,cpuacct+cpu.cfs_period_us": "100000"}
    # As Docker shows it: the path outside, and the container's own group at the mount point.
    cgroup, mounts = (
        "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n0::/",
        V1.format(shown="/docker/ab") + "\n" + HYBRID,
    )
    assert usable_cores(tree(tmp_path, cgroup, mounts, **files)) == cores


def test_quota_of_a_group_around_counts(tmp_path: Path):
    files = {"a+cpu.max": "200000 100000", "a+b+cpu.max": "max 100000", "a+b+c+cpu.max": "400000 100000"}
    assert usable_cores(tree(tmp_path, "0::/a/b/c", V2.format(shown="/"), **files)) == 2


def test_quota_of_another_group_does_not(tmp_path: Path):
    files = {"a+cpu.max": "300000 100000", "other+cpu.max": "100000 100000"}
    assert usable_cores(tree(tmp_path, "0::/a", V2.format(shown="/"), **files)) == 3


def test_group_outside_of_what_the_container_sees_is_passed_over(tmp_path: Path):
    files = {"cpu.max": "100000 100000"}
    assert usable_cores(tree(tmp_path, "0::/../../host", V2.format(shown="/"), **files)) == 1


def test_mount_point_with_a_space_is_found(tmp_path: Path):
    mounts = V2.format(shown="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/my\\040groups")
    assert usable_cores(tree(tmp_path, "0::/", mounts, **{"my groups+cpu.max": "100000 100000"})) == 1


def test_without_control_groups_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert usable_cores(tmp_path) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert usable_cores(tmp_path) == 1


def test_engine_and_decoders_take_it_as_their_default(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    from ptsa_serve.artifact import Artifact
    from ptsa_serve.engines import load_engine, onnxruntime
    from ptsa_serve.settings import Settings

    monkeypatch.setattr("ptsa_serve.engines.onnxruntime.usable_cores", lambda: 3)
    monkeypatch.setattr("ptsa_serve.settings.usable_cores", lambda: 3)
    asked = []
    real = onnxruntime._session_options
    monkeypatch.setattr(onnxruntime, "_session_options", lambda *a, **how: asked.append(real(*a, **how)) or asked[-1])
    engine = load_engine("onnxruntime", Artifact.open(tiny_artifact))
    assert engine.lanes == 3
    engine.run(np.zeros((1, 48, 64, 3), np.uint8))
    engine.run(np.zeros((1, 48, 64, 3), np.uint8), alone=False)
    engine.close()
    assert [options.intra_op_num_threads for options in asked] == [3, 1]
    assert Settings.load({}).decoders() == 3
