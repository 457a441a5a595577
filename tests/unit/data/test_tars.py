import io
import itertools
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data.tars import MAX_MEMBER_BYTES, read_index, read_sample, read_span, write_shard
from kosmosg.errors import DataError

SAMPLES = [("000", {"json": b"{}", "0.crop.png": b"picture"}), ("a/001", {"txt": b"words"})]


def read(path):
    with path.open("rb") as file:
        return [(sample.key, read_sample(file, sample)) for sample in read_index(path)]


def test_samples_come_back_in_their_order(tmp_path):
    assert write_shard(tmp_path / "s.tar", SAMPLES) == 2
    assert read(tmp_path / "s.tar") == SAMPLES
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9_\-]{1,8}", fullmatch=True),
        st.dictionaries(
            st.from_regex(r"[a-z0-9]{1,3}(\.[a-z]{1,3})?", fullmatch=True), st.binary(max_size=600)
        ).filter(bool),
    )
)
def test_any_samples_come_back(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("any") / "s.tar"
    write_shard(path, samples.items())
    assert dict(read(path)) == samples


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, SAMPLES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_shard_is_written_whole_or_not_at_all(tmp_path):
    def failing():
        yield SAMPLES[0]
        raise KeyboardInterrupt

    write_shard(tmp_path / "s.tar", SAMPLES)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "s.tar", failing())
    assert read(tmp_path / "s.tar") == SAMPLES
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


@pytest.mark.parametrize("key", ["a.b", "", "a b", "../x.y", "é"])
def test_keys_that_readers_would_change_are_refused(tmp_path, key):
    with pytest.raises(DataError, match="characters other than"):
        write_shard(tmp_path / "s.tar", [(key, {"txt": b""})])


def test_a_key_comes_once(tmp_path):
    with pytest.raises(DataError, match="'000' comes twice"):
        write_shard(tmp_path / "s.tar", [SAMPLES[0], SAMPLES[0]])


def tar_of(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_what_is_no_sample_is_passed_over(tmp_path):
    members = [("README", b"x"), ("./k/.hidden", b"x"), ("k.TXT", b"a"), ("k.Jpg", b"b")]
    path = tar_of(tmp_path / "s.tar", *members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("l.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert read(path) == [("k", {"txt": b"a", "jpg": b"b"})]


def test_a_file_that_comes_again_begins_another_sample(tmp_path):
    path = tar_of(tmp_path / "s.tar", ("k.txt", b"a"), ("k.txt", b"b"))
    assert read(path) == [("k", {"txt": b"a"}), ("k", {"txt": b"b"})]


def test_a_cut_off_shard_gives_what_is_whole_and_then_says_where_it_ends(tmp_path):
    path = tmp_path / "s.tar"
    write_shard(path, [(f"{i:03}", {"txt": bytes(2000)}) for i in range(5)])
    path.write_bytes(path.read_bytes()[:9000])
    samples = read_index(path)
    assert [next(samples).key for _ in range(2)] == ["000", "001"]
    with pytest.raises(DataError, match=r"member '003.txt' at byte \d+ ends \d+ bytes after") as e:
        list(samples)
    assert e.value.reason == "cut-off shard"


def test_a_shard_that_shrinks_after_it_was_indexed(tmp_path):
    path = tmp_path / "s.tar"
    write_shard(path, SAMPLES)
    (sample, _) = read_index(path)
    path.write_bytes(path.read_bytes()[:1500])
    with path.open("rb") as file, pytest.raises(DataError, match="copy the shard again"):
        read_sample(file, sample)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b" + bytes(600)])
def test_other_files_are_named(tmp_path, data):
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"s\.tar: .*expected an uncompressed tar"):
        list(read_index(path))


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "s.tar"):
        with pytest.raises(DataError, match="expected an uncompressed tar"):
            list(read_index(path))


def test_a_member_that_claims_to_be_huge_is_not_read(tmp_path):
    path = tmp_path / "s.tar"
    info = tarfile.TarInfo("k.txt")
    info.size = MAX_MEMBER_BYTES + 1
    path.write_bytes(info.tobuf() + bytes(10240))
    with pytest.raises(DataError, match=r"'k.txt' at byte 0 has 67108865 bytes"):
        list(read_index(path))


def header(name, size, kind=tarfile.REGTYPE):
    """A member's header whose size may be below zero, which tarfile itself would not write."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])
def test_a_size_below_zero_leads_back_to_nothing(tmp_path, kind):
    """Back at the second member, a reader would go round for ever."""
    path = tmp_path / "s.tar"
    whole = b"".join(header(f"{name}.txt", 3) + b"abc" + bytes(509) for name in "ab")
    path.write_bytes(whole + header("c.txt", -1536, kind) + bytes(1024))
    samples = read_index(path)
    assert next(samples).key == "a"
    with pytest.raises(DataError, match=r"member 'c.txt' at byte 2048 has a size below zero"):
        list(itertools.islice(samples, 9))
    with path.open("rb") as file, pytest.raises(DataError, match="a size below zero"):
        read_span(file.fileno(), 0, 2560, name="s.tar")


def test_a_chain_of_extended_headers_is_an_error(tmp_path):
    path = tmp_path / "s.tar"
    link = header("././@LongLink", 6, tarfile.GNUTYPE_LONGNAME) + b"b.txt\0" + bytes(506)
    path.write_bytes(link * 3000 + header("b.txt", 0) + bytes(1024))
    with pytest.raises(DataError, match="recursion"):
        list(read_index(path))
    with path.open("rb") as file, pytest.raises(DataError, match="recursion"):
        read_span(file.fileno(), 0, 3000 * 1024 + 512, name="s.tar")


@pytest.mark.parametrize("cut", [0, 100, -10])
def test_a_shard_cut_off_between_members_is_not_taken_for_whole(tmp_path, cut):
    path = tmp_path / "s.tar"
    write_shard(path, [(f"{i:03}", {"txt": bytes(2000)}) for i in range(5)])
    path.write_bytes(path.read_bytes()[: 3 * (512 + 2048) + cut])
    samples = read_index(path)
    assert [next(samples).key for _ in range(2)] == ["000", "001"]
    with pytest.raises(DataError, match=rf"ends at byte {7680 + cut}, where another member") as e:
        list(samples)
    assert e.value.reason == "cut-off shard"


def test_a_header_that_is_none_and_a_second_tar_behind_the_first_are_no_end(tmp_path):
    path = tmp_path / "s.tar"
    write_shard(path, [(f"{i:03}", {"txt": b"words"}) for i in range(3)])
    whole = path.read_bytes()
    header = whole[:1024] + b"?" * 512 + whole[1536:]
    for damaged, byte in ((header, 1024), (whole + whole, len(whole))):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"at byte {byte} is neither a member nor") as e:
            list(read_index(path))
        assert e.value.reason == "damaged shard"


def spans(path):
    with path.open("rb") as file:
        for sample in read_index(path):
            yield sample.key, read_span(file.fileno(), *sample.span, name=path.name)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9_\-]{1,8}", fullmatch=True) | st.just("long" * 60 + "/name"),
        st.dictionaries(st.sampled_from(["txt", "0.jpg"]), st.binary(max_size=600), min_size=1),
        min_size=1,
    )
)
def test_a_sample_is_read_by_its_span(tmp_path_factory, samples):
    """Long names too, whose headers are of another kind."""
    path = tmp_path_factory.mktemp("any") / "s.tar"
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, data in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime = len(data), len(data) / 7  # webdataset writes fractions
                tar.addfile(info, io.BytesIO(data))
    for key, (own_key, files) in spans(path):
        assert own_key == key
        assert files == samples[key]


def test_a_span_of_a_changed_shard_is_an_error(tmp_path):
    path = tmp_path / "s.tar"
    write_shard(path, SAMPLES)
    (sample, _) = read_index(path)
    start, stop = sample.span
    with path.open("rb") as file:
        with pytest.raises(DataError, match=r"no sample at byte 3 .*; it changed after"):
            read_span(file.fileno(), start + 3, stop, name="s.tar")
        with pytest.raises(DataError, match=r"the sample at byte 0 has \d+ bytes, at most"):
            read_span(file.fileno(), 0, 2**31, name="s.tar")
    path.write_bytes(path.read_bytes()[: stop - 10])
    with path.open("rb") as file, pytest.raises(DataError, match="ends 10 bytes before the sample"):
        read_span(file.fileno(), start, stop, name="s.tar")
