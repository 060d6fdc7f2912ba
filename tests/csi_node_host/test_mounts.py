"""Mount options and the mount table: pure parts by table, the system calls on a real file system."""

from pathlib import Path

import pytest

from csi.errors import FailedPrecondition, Internal
from csi.node_host import mounts

TABLE = """\
22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
40 28 259:1 / /var/lib/kubelet/plugins/globalmount rw,relatime shared:9 - ext4 /dev/nvme0n1 rw
41 28 259:1 / /var/lib/kubelet/pods/1/volumes/a\\040b ro,relatime - ext4 /dev/nvme0n1 rw
42 28 0:6 /nvme1n1 /publish/pv/uid rw - devtmpfs devtmpfs rw,size=4k
broken line
"""


def test_table() -> None:
    found = mounts.parse_mountinfo(TABLE)
    assert [mount.point for mount in found][2] == "/var/lib/kubelet/pods/1/volumes/a b"
    assert [mount.read_only for mount in found] == [False, False, True, False]
    assert found[3].root == "/nvme1n1"
    assert found[1].device == "259:1"


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "é"])
def test_a_path_with_what_python_takes_for_the_end_of_a_line(odd: str) -> None:
    line = f"30 28 7:1 / /var/lib/a{odd}b rw,relatime shared:1 - ext4 /dev/loop1 rw\n"
    (found,) = mounts.parse_mountinfo(line)
    assert (found.point, found.fs_type) == (f"/var/lib/a{odd}b", "ext4")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], (0, "")),
        (["ro"], (1, "")),
        (["ro", "rw"], (0, "")),
        (["noatime,nodiratime", "data=ordered"], (0xC00, "data=ordered")),
        (["discard", "discard"], (0, "discard")),
        (["_netdev,nofail", "x-systemd.automount", "discard", "comment=ours"], (0, "discard")),
        (["defaults", "nouuid"], (0, "nouuid")),
        (["nosuid", "nodev", "noexec", "sync"], (0x1E, "")),
    ],
)
def test_options(words: list[str], expected: tuple[int, str]) -> None:
    assert mounts.options(words) == expected


@pytest.mark.root
def test_mount_bind_and_unmount(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.mkdir()
    mounts.mount("tmpfs", str(one), "tmpfs", ["size=1m", "noexec"])
    try:
        (one / "file").write_text("x")
        mounts.bind(str(one), str(two), read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            (two / "file").write_text("y")
        present = mounts.at(str(two))
        assert present is not None
        assert present.read_only
        mounts.unmount(str(two))
        assert mounts.at(str(two)) is None
        with (one / "file").open(), pytest.raises(FailedPrecondition, match="in use"):
            mounts.unmount(str(one))
    finally:
        mounts.unmount(str(two))
        mounts.unmount(str(one))
    mounts.unmount(str(one))
    mounts.unmount(str(tmp_path / "never"))


@pytest.mark.root
def test_refusals_name_both_sides(tmp_path: Path) -> None:
    with pytest.raises(Internal, match=f"mount nothing at {tmp_path}"):
        mounts.mount("nothing", str(tmp_path), "nofs", [])
