"""Our shards in other people's readers, and theirs in ours."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.foreign import record_of
from kosmosg.data.looking import walk
from kosmosg.data.records import Caption
from kosmosg.data.samples import from_bytes, to_bytes
from kosmosg.data.validate import Report, validate
from toys.shards import comparable, example, one_of_each, picture, write

ENERGON = Path(sys.executable).with_name("energon")
# energon imports parts of torch that call themselves old, and pins memory for no GPU.
quietly = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


# webdataset leaves closing its tars to the collector.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_webdataset_reads_our_shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    records = one_of_each()
    tar = write(tmp_path / "ours.tar", records)
    read = list(wds.WebDataset(str(tar), shardshuffle=False))
    assert [comparable(from_bytes(one["__key__"], extensions(one))) for one in read] == [
        comparable(record) for record in records
    ]
    decoded = list(wds.WebDataset(str(tar), shardshuffle=False).decode("pil"))
    assert decoded[3]["json"]["entities"][0]["mention"] == "dog"
    assert decoded[3]["0.crop.png"].size == (9, 6)


def extensions(sample):
    return {name: data for name, data in sample.items() if not name.startswith("__")}


def test_we_read_what_webdataset_writes(tmp_path):
    wds = pytest.importorskip("webdataset")
    records = one_of_each()
    with wds.ShardWriter(str(tmp_path / "theirs-%03d.tar"), maxcount=3, verbose=0) as writer:
        for record in records:
            writer.write({"__key__": record.key, **to_bytes(record)})
    # As its users write them: the writer encodes values by their extensions.
    with wds.TarWriter(str(tmp_path / "encoded.tar")) as writer:
        fields = {"kind": "caption", "text": "a fish", "image": "png", "format_version": 1}
        writer.write({"__key__": "w0", "png": np.asarray(picture(3)) / 255, "json": fields})
    tars = sorted(tmp_path.glob("theirs-*.tar"))
    assert len(tars) == 2
    read = [from_bytes(key, files) for _, key, files in walk(tars)]
    assert [comparable(one) for one in read] == [comparable(record) for record in records]
    report = Report()
    assert list(validate([*tars, tmp_path / "encoded.tar"], report)) == []
    assert report.num_records.total() == 6


def test_we_read_what_img2dataset_writes(tmp_path):
    """Its writer is webdataset's, with these fields (img2dataset 1.47)."""
    wds = pytest.importorskip("webdataset")
    buffer = io.BytesIO()
    picture(1, (300, 200)).save(buffer, "JPEG")
    with wds.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for number in range(2):
            key = f"{number:09}"
            fields = {"caption": "a fish", "url": "u", "key": key, "status": "success"}
            said = json.dumps(fields, indent=4)
            writer.write({"__key__": key, "jpg": buffer.getvalue(), "txt": "a fish", "json": said})
    read = [record_of(key, files) for _, key, files in walk([tmp_path / "00000.tar"])]
    assert [(one.key, one.text, one.image.size) for one in read] == [
        ("000000000", "a fish", (300, 200)),
        ("000000001", "a fish", (300, 200)),
    ]


def prepare(directory, *options):
    words = [ENERGON, "prepare", "--non-interactive", "--split-ratio", "1,0,0", "--no-progress"]
    subprocess.run([*words, *options, directory], check=True, capture_output=True)


def energon_samples(directory, count, **options):
    pytest.importorskip("megatron.energon")
    from megatron.energon import WorkerConfig, get_loader, get_train_dataset

    dataset = get_train_dataset(
        directory,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        virtual_epoch_length=count,
        **options,
    )
    return list(get_loader(dataset))


@quietly
def test_energon_reads_our_captions(tmp_path):
    pytest.importorskip("megatron.energon")
    records = [Caption(key=f"c{i}", text=f"fish {i}", image=picture(i)) for i in range(4)]
    write(tmp_path / "captions-000.tar", records)
    fields = '{"image": "png", "caption": "json[text]"}'
    prepare(tmp_path, "--sample-type", "CaptioningSample", "--field-map", fields)
    read = energon_samples(tmp_path, 4)
    assert sorted((one.__key__, one.caption) for one in read) == [
        (f"c{i}", f"fish {i}") for i in range(4)
    ]
    for one in read:
        pixels = (one.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        assert np.array_equal(pixels, np.asarray(picture(int(one.__key__[1:]))))


@quietly
def test_energon_reads_every_record_through_a_cooker(tmp_path):
    energon = pytest.importorskip("megatron.energon")
    records = [*one_of_each(), example("deep/e1")]
    write(tmp_path / "all-000.tar", records)
    prepare(tmp_path, "--sample-type", "CrudeWebdataset")

    @energon.stateless
    def cook(sample):
        return {
            **energon.basic_sample_keys(sample),
            "record": from_bytes(sample["__key__"], extensions(sample)),
        }

    class Encoder(energon.DefaultTaskEncoder):
        cookers = (energon.Cooker(cook),)
        decoder = None  # our reader takes bytes

    read = [one["record"] for one in energon_samples(tmp_path, 6, task_encoder=Encoder())]
    by_key = {record.key: comparable(record) for record in records}
    assert {one.key: comparable(one) for one in read} == by_key
    # What energon leaves beside is passed over.
    report = Report()
    assert list(validate([tmp_path / "all-000.tar"], report)) == []


def test_a_picture_of_any_mode_comes_through():
    for mode in ("L", "RGBA", "P", "1", "I;16"):
        image = Image.new(mode, (8, 8), 1)
        record = Caption(key="c", text="t", image=image)
        read = from_bytes("c", to_bytes(record))
        assert read.image.mode == "RGB"
