from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import write_tar

from mm.data.shards.archive import Archive
from mm.data.shards.tar import Member, groups, split_name, walk
from mm.errors import ShardError

MEMBERS = {"a.jpg": b"1" * 700, "a.txt": b"", "b/c.jpg": b"3" * 512, "b/c.json": b"{}"}


def listing(path: Path) -> list[tuple[str, bytes]]:
    data = path.read_bytes()
    return [(member.name, data[member.offset : member.offset + member.size]) for member in walk(path)]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(tmp_path: Path, tar_format: int) -> None:
    long = {"d" * 90 + "/" + "e" * 90 + ".jpg": b"long", "图片.txt": "图".encode()}
    if tar_format != tarfile.USTAR_FORMAT:
        long |= {"f" * 300 + ".jpg": b"longer"}
    path = write_tar(tmp_path / "x.tar", MEMBERS | long, format=tar_format)
    assert listing(path) == list((MEMBERS | long).items())


def test_global_pax_headers_and_huge_numbers_in_base_256(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", MEMBERS, format=tarfile.PAX_FORMAT, pax_headers={"comment": "all of it"})
    assert listing(path) == list(MEMBERS.items())
    info = tarfile.TarInfo("a.jpg")
    info.size = 5
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    path.write_bytes(bytes(header) + b"hello".ljust(512, b"\0") + bytes(1024))
    assert listing(path) == [("a.jpg", b"hello")]


def test_directories_are_left_out_and_links_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    assert [(member.name, member.regular) for member in walk(path)] == [
        ("link2.jpg", False),
        ("link1.jpg", False),
        ("link6.jpg", False),
        ("link3.jpg", False),
        ("a.txt", True),
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=150).map(
                lambda name: name.rstrip("/") or "a"
            ),
            st.binary(max_size=1500),
        ),
        max_size=8,
    )
)
def test_agrees_with_tarfile(tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]]) -> None:
    path = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", members)
    with tarfile.open(path) as tar:
        expected = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert listing(path) == expected == members


def test_names_are_made_printable(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a\n\x1b[2J.jpg": b"x", "b\udcff.jpg": b"y"})
    names = [member.name for member in walk(path)]
    assert names[0] == "a\\n\\x1b[2J.jpg"
    assert all(name.isprintable() for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("./a.JPG", ("./a", "jpg")),
        ("d.v1/a.seg.png", ("d.v1/a", "seg.png")),
        ("README", ("README", "")),
        ("._a.jpg", None),
        ("d/.hidden", None),
        ("__meta__/a.jpg", None),
        ("a__b__.jpg", ("a__b__", "jpg")),
    ],
)
def test_split_name(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_groups_follow_neighbours(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt", "b.jpg", "a.json", "c.txt", "c.txt"]
    found = list(groups(write_tar(tmp_path / "x.tar", [(name, b"") for name in names])))
    assert [(group.key, list(group.members), group.start) for group in found] == [
        ("a", ["jpg", "txt"], 0),
        ("b", ["jpg"], 1024),
        ("a", ["json"], 1536),
        ("c", ["txt"], 2048),
    ]
    assert [group.duplicate and group.duplicate.header for group in found] == [None, None, None, 2560]


def test_a_sample_that_begins_again_is_another(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt", "a.jpg", "a.txt", "b.jpg", "b.jpg", "b.txt", "b.txt"]
    found = list(groups(write_tar(tmp_path / "x.tar", [(name, b"") for name in names])))
    assert [(group.key, group.start, group.duplicate is not None) for group in found] == [
        ("a", 0, False),
        ("a", 1024, False),
        ("b", 2048, True),
    ]


@pytest.mark.parametrize(
    ("name", "unsafe"),
    [
        ("a.jpg", None),
        ("./b/a.seg.png", None),
        ("a..b/c.jpg", None),
        ("a:b.jpg", None),
        ("a\\b.jpg", None),
        ("../a.jpg", "leads out of the archive"),
        ("a/..", "leads out of the archive"),
        ("a\\..\\b.jpg", "leads out of the archive"),
        ("/a.jpg", "leads out of the archive"),
        ("c:/a.jpg", "leads out of the archive"),
        ("a.PKL", "is a .pkl file"),
        ("a.json.gz", "is a .gz file"),
        ("gz", None),
    ],
)
def test_unsafe_names(name: str, unsafe: str | None) -> None:
    assert Member(name, 512, 1, 0).unsafe == unsafe
    assert Member(name, 512, 1, 0, regular=False).unsafe == "isn't a plain file"


@pytest.mark.parametrize(
    ("content", "reason", "offset", "says"),
    [
        (b"", "empty shard", 0, "empty"),
        (b"\x1f\x8b" + bytes(1000), "not a tar", 0, "compressed"),
        (b"\x28\xb5\x2f\xfd", "not a tar", 0, "compressed"),
        (b"not a tar at all" * 100, "not a tar", 0, "something else"),
        (b"\n<!doctype HTML>", "not a tar", 0, "HTML"),
        (b"<html><body>" + b"sorry " * 200, "not a tar", 0, "HTML"),
        (b'{"message": "not found"}', "not a tar", 0, "JSON"),
        (b"\xff\xd8\xff\xe0" + bytes(2000), "not a tar", 0, "picture"),
        (b"k0.p", "shard cut short", 4, "end-of-archive"),
        (bytes(512), "shard cut short", 512, "end-of-archive"),
        (bytes(700), "shard cut short", 700, "end-of-archive"),
        (bytes(512) + b"x" * 512, "corrupt tar header", 0, "zeros"),
        (bytes(10240) + b"x", "corrupt tar header", 0, "zeros"),
    ],
)
def test_not_a_whole_tar(tmp_path: Path, content: bytes, reason: str, offset: int, says: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=says) as caught:
        list(walk(path))
    assert (caught.value.reason, caught.value.offset) == (reason, offset) and str(path) in str(caught.value)


def test_damage_says_where_it_is(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"1" * 700, "b.jpg": b"2" * 700})
    whole = path.read_bytes()
    for content, offset in (
        (whole[:1500], 1500),
        (whole[:3000], 3000),
        (whole[:1536] + b"x" + whole[1537:], 1536),
        (whole[: 1536 + 124] + b"z" + whole[1537 + 124 :], 1536),
    ):
        path.write_bytes(content)
        members = []
        with pytest.raises(ShardError) as caught:
            members += walk(path)
        assert caught.value.offset == offset and (f"byte {offset}" in str(caught.value))


def test_reads_through_a_window(tmp_path: Path) -> None:
    sizes = [0, 1, 511, 512, 513, 4000, 15_000, 60_000, 65_536, 70_000, 200_000] * 3
    members = [(f"{number:03d}.bin", bytes([number]) * size) for number, size in enumerate(sizes)]
    path = write_tar(tmp_path / "x.tar", members, format=tarfile.PAX_FORMAT, pax_headers={"comment": "c" * 5000})
    assert listing(path) == members
    with Archive(path) as archive:
        assert [member.name for member in walk(archive)] == [name for name, _ in members]
        assert [member.header for member in walk(archive)] == sorted(member.header for member in walk(archive))


def test_zeros_in_the_middle_are_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    data = bytearray(path.read_bytes())
    data[1024:2048] = bytes(1024)
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a.jpg"]  # what goes unnoticed elsewhere
    with pytest.raises(ShardError, match="corrupt tar header"):
        list(walk(path))


def test_a_size_beyond_the_file_is_a_cut(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 1 << 60
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(ShardError, match=r"within a\.jpg"):
        list(walk(path))


@pytest.mark.parametrize(
    "record", [b"999 path=x\n", b"abc\n", b"0 path=x\n", b"5 x", b"12 size=-50\n", b"1" * 5000 + b" a=b\n"]
)
def test_bad_extended_records(tmp_path: Path, record: bytes) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    follower = tarfile.TarInfo("a.jpg").tobuf()
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf() + record.ljust(512, b"\0") + follower + bytes(1024))
    with pytest.raises(ShardError, match="corrupt tar header"):
        list(walk(path))


def test_a_member_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tarfile.TarInfo("").tobuf() + bytes(1024))
    with pytest.raises(ShardError, match="no name"):
        list(walk(path))
