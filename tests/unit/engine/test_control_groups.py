"""Where groups of our own are made, by what the kernel says of mounts and of this process."""

from __future__ import annotations

from pathlib import Path

from services.run.engine.embedded.runtime.limits import find_control_groups

OWN = "steps"


def said(tmp_path: Path, *, mounts: str, own: str) -> dict[str, Path]:
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "cgroup").write_text(own)
    return {"mounts": tmp_path / "mountinfo", "own": tmp_path / "cgroup"}


def unified(at: Path, *, controllers: str) -> None:
    """A group as the kernel fills it when it is made; whoever makes it again finds it so."""
    at.mkdir(parents=True)
    (at / "cgroup.controllers").write_text(controllers)
    (at / "cgroup.subtree_control").write_text("")


def test_in_version_1_groups_lie_in_the_group_of_this_process_for_each_controller(tmp_path: Path) -> None:
    (tmp_path / "memory" / "session").mkdir(parents=True)
    (tmp_path / "cpu").mkdir()
    found = find_control_groups(
        OWN,
        **said(
            tmp_path,
            mounts=f"""31 23 0:28 / {tmp_path} rw - tmpfs tmpfs rw
32 31 0:29 / {tmp_path}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/0123 {tmp_path}/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / {tmp_path}/unified rw,relatime - cgroup2 cgroup2 rw
""",
            own="4:memory:/docker/0123/session\n1:cpu,cpuacct:/\n0::/\n",
        ),
    )
    assert found is not None
    assert found.name == "control groups of version 1"
    assert (tmp_path / "memory" / "session" / OWN).is_dir()
    assert (tmp_path / "cpu" / OWN).is_dir()
    found.close()
    assert not (tmp_path / "memory" / "session" / OWN).exists()
    assert not (tmp_path / "cpu" / OWN).exists()


def test_in_version_2_groups_lie_in_the_nearest_group_that_gives_memory_to_those_below(tmp_path: Path) -> None:
    unified(tmp_path / "user" / OWN, controllers="cpu memory pids")
    unified(tmp_path / "user" / "session" / OWN, controllers="")
    found = find_control_groups(
        OWN, **said(tmp_path, mounts=f"30 23 0:27 / {tmp_path} rw - cgroup2 cgroup2 rw\n", own="0::/user/session\n")
    )
    assert found is not None
    assert found.name == "control groups of version 2"
    assert (tmp_path / "user" / OWN / "cgroup.subtree_control").read_text() == "+memory +cpu"
    assert (tmp_path / "user" / "session" / OWN / "cgroup.subtree_control").read_text() == ""


def test_where_no_group_gives_memory_there_are_none(tmp_path: Path) -> None:
    mounts = f"30 23 0:27 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    assert find_control_groups(OWN, **said(tmp_path, mounts=mounts, own="0::/user/session\n")) is None
    assert find_control_groups(OWN, **said(tmp_path, mounts="", own="0::/\n")) is None
    assert not (tmp_path / OWN).exists()
