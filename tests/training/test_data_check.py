"""Bad data is reported with its file's name, in every layout; good data is read alike in all of them."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.core.errors import DataError
from sfumato.training import check
from sfumato.training.contact import contact_sheet
from sfumato.training.pictures import decode, header
from sfumato.training.readers import open_dataset


def picture(index: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    noise = np.random.default_rng(index).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(index: int) -> bytes:
    buffer = io.BytesIO()
    picture(index).save(buffer, "PNG")
    return buffer.getvalue()


CAPTIONS = ["a red apple", "two pears", "an old tree"]


def numbered(root: Path, count: int = 3, captions: list[str] | None = None) -> Path:
    (root / "images").mkdir(parents=True)
    for i in range(count):
        picture(i).save(root / "images" / f"{i + 1}.png")
    lines = CAPTIONS[:count] if captions is None else captions
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    return root


def metadata(root: Path, name: str) -> Path:
    (root / "train").mkdir(parents=True)
    for i in range(3):
        picture(i).save(root / "train" / f"{'abc'[i]}.png")
    rows = [{"file_name": f"{'abc'[i]}.png", "text": CAPTIONS[i]} for i in range(3)]
    if name.endswith("csv"):
        lines = ["file_name,text", *(f'{r["file_name"]},"{r["text"]}"' for r in rows)]
    else:
        lines = [json.dumps(r) for r in rows]
    (root / "train" / name).write_text("\n".join(lines))
    return root


def sidecar(root: Path) -> Path:
    root.mkdir(parents=True)
    for i in range(3):
        picture(i).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(CAPTIONS[i])
    return root


def parquet(root: Path) -> Path:
    arrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    root.mkdir(parents=True)
    rows = [{"bytes": encoded(i), "path": None} for i in range(3)]
    pq.write_table(arrow.table({"image": rows, "text": CAPTIONS}), root / "part.parquet", row_group_size=2)
    return root


def shards(root: Path) -> Path:
    root.mkdir(parents=True)
    for shard, indices in enumerate(([0, 1], [2])):
        with tarfile.open(root / f"{shard:03}.tar", "w") as archive:
            for i in indices:
                for name, content in ((f"s/{i:04}.png", encoded(i)), (f"s/{i:04}.txt", CAPTIONS[i].encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


LAYOUTS = {
    "numbered": numbered, "jsonl": lambda root: metadata(root, "metadata.jsonl"),
    "csv": lambda root: metadata(root, "metadata.csv"), "sidecar": sidecar, "parquet": parquet, "tar": shards,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_items(layout: str, tmp_path: Path) -> None:
    dataset = open_dataset(str(LAYOUTS[layout](tmp_path / "set")))
    assert len(dataset) == 3
    for i in (2, 0, 1):
        item = dataset.item(i)
        assert item.caption == CAPTIONS[i]
        assert np.array_equal(np.asarray(decode(item.picture)), np.asarray(picture(i)))
    assert check.examine(dataset).problems == []


def test_several_captions_of_one_picture_are_all_read(tmp_path: Path) -> None:
    said = ["a red apple", "an apple", "fruit"]
    root = metadata(tmp_path / "jsonl", "metadata.jsonl")
    rows = [{"file_name": "a.png", "text": [*said, ""]}, {"file_name": "b.png", "text": []}]
    (root / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, content in (("0.png", encoded(0)), ("0.json", json.dumps({"text": said}).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    columns = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = columns[0].table({"image": [{"bytes": encoded(0), "path": None}], "text": [said]})
    columns[1].write_table(table, tmp_path / "set.parquet")
    for where in (root, tmp_path / "set.tar", tmp_path / "set.parquet"):
        item = open_dataset(str(where)).item(0)
        assert (item.caption, item.others) == ("a red apple", ("an apple", "fruit"))
    report = check.examine(open_dataset(str(root)))
    assert ("missing-caption", "train/b.png") in {(p.kind, p.key) for p in report.problems}
    assert report.tokens.total() == 3


def test_class_folders_have_labels(tmp_path: Path) -> None:
    for i, name in enumerate(("big_dog", "cat", "cat")):
        (tmp_path / name).mkdir(exist_ok=True)
        picture(i).save(tmp_path / name / f"{i}.png")
    dataset = open_dataset(str(tmp_path))
    assert dataset.classes == ("big_dog", "cat")
    items = [dataset.item(i) for i in range(3)]
    assert [(item.label, item.caption) for item in items] == [(0, "big dog"), (1, "cat"), (1, "cat")]


def test_pictures_alone_have_no_captions(tmp_path: Path) -> None:
    for i in (2, 10, 1):
        picture(i).save(tmp_path / f"{i}.png")
    dataset = open_dataset(str(tmp_path))
    assert [dataset.item(i).key for i in range(3)] == ["1.png", "2.png", "10.png"]
    assert check.examine(dataset).problems == []


def test_hub_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    dataset = open_dataset(f"hub:{parquet(tmp_path / 'set')}")
    assert [dataset.item(i).caption for i in range(3)] == CAPTIONS
    assert np.array_equal(np.asarray(decode(dataset.item(1).picture)), np.asarray(picture(1)))


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    numbered(tmp_path / "set")
    (tmp_path / "set/metadata.jsonl").write_text('{"file_name": "images/1.png", "text": "x"}')
    with pytest.raises(DataError, match="numbered or as metadata"):
        open_dataset(str(tmp_path / "set"))
    assert len(open_dataset(str(tmp_path / "set"), "numbered")) == 3


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        open_dataset(str(tmp_path))


def test_wrong_columns_offer_the_right_ones(tmp_path: Path) -> None:
    root = metadata(tmp_path / "set", "metadata.jsonl")
    with pytest.raises(DataError, match="did you mean 'text'"):
        open_dataset(str(root), caption="texts")


def test_metadata_cannot_lead_out_of_the_set(tmp_path: Path) -> None:
    root = metadata(tmp_path / "set", "metadata.jsonl")
    picture(0).save(tmp_path / "outside.png")
    (root / "train/metadata.jsonl").write_text('{"file_name": "../../outside.png", "text": "x"}')
    with pytest.raises(DataError, match="leads out"):
        open_dataset(str(root))


def found(root: Path) -> set[tuple[str, str]]:
    return {(p.kind, p.key) for p in check.examine(open_dataset(str(root))).problems}


def test_a_missing_caption_names_the_last_picture(tmp_path: Path) -> None:
    assert found(numbered(tmp_path / "set", 3, CAPTIONS[:2])) == {("missing-caption", "images/3.png")}


def test_surplus_captions_and_stray_pictures(tmp_path: Path) -> None:
    root = numbered(tmp_path / "set", 2, [*CAPTIONS])
    picture(7).save(root / "images/cover.png")
    picture(8).save(root / "images/02.png")
    kinds = found(root)
    assert ("missing-picture", "captions.txt line 3") in kinds
    assert ("stray-file", "images/cover.png") in kinds
    assert len([k for k, _ in kinds if k == "stray-file"]) == 2


def huge_png(path: Path, side: int) -> None:
    """The header of a picture of side x side, and hardly anything after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", start), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    root = numbered(tmp_path / "bad", 12, [f"caption {i}" for i in range(11)] + ["x" * 10_000])
    images = root / "images"
    for i in range(2, 11):
        (images / f"{i}.png").unlink()
    (images / "2.jpg").write_text("this is no picture")
    huge_png(images / "3.png", 30_000)
    picture(4).convert("CMYK").save(images / "4.jpg")
    picture(5).save(images / "5.gif", save_all=True, append_images=[picture(6), picture(7)])
    (images / "6.png").write_bytes(encoded(6)[:-200])
    (images / "7.png").write_bytes(b"")
    picture(8, (8, 90)).save(images / "8.png")
    (images / "9.png").write_bytes(encoded(0))
    picture(0, (120, 120)).save(images / "10.webp", quality=95)
    return root


def test_each_bad_file_is_reported_by_name(bad: Path) -> None:
    assert found(bad) == {
        ("unreadable", "images/2.jpg"), ("too-large", "images/3.png"), ("mode", "images/4.jpg"),
        ("animated", "images/5.gif"), ("mode", "images/5.gif"), ("unreadable", "images/6.png"),
        ("unreadable", "images/7.png"), ("tiny", "images/8.png"), ("duplicate", "images/9.png"),
        ("near-duplicate", "images/10.webp"), ("long-caption", "images/12.png"), ("cut-caption", "images/12.png"),
    }  # fmt: skip


def test_training_refuses_errors_until_their_kinds_are_accepted(bad: Path) -> None:
    report = check.examine(open_dataset(str(bad)))
    with pytest.raises(DataError, match=r"images/3\.png: 30,000 x 30,000 pixels") as refusal:
        report.refuse(str(bad))
    assert "images/5.gif" in str(refusal.value)
    kinds = {p.kind for p in report.errors()}
    report.refuse(str(bad), kinds)
    with pytest.raises(DataError, match="animated"):
        report.refuse(str(bad), kinds - {"animated"})
    with pytest.raises(DataError, match="did you mean 'animated'"):
        report.refuse(str(bad), ["animation"])


def test_the_command_lists_everything_and_writes_a_contact_sheet(
    bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert main(["data", "check", str(bad), "--sheet", str(sheet)]) == 1
    text = capsys.readouterr().out
    assert all(f"images/{name}" in text for name in ("2.jpg", "3.png", "4.jpg", "5.gif", "8.png", "10.webp"))
    assert "10,000 characters" in text
    assert header(sheet).format == "PNG"
    assert main(["data", "check", str(bad), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["items"] == 12
    assert main(["data", "check", str(numbered(tmp_path / "good"))]) == 0
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2


def test_the_command_makes_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "shapes", str(tmp_path / "s"), "--count", "3", "--size", "32"]) == 0
    assert main(["data", "check", str(tmp_path / "s")]) == 0
    assert main(["data"]) == 2
    assert "check, shapes" in capsys.readouterr().err


def test_modes_become_rgb_as_they_look() -> None:
    def reread(image: Image.Image, format: str) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format)
        return decode(buffer.getvalue())

    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert reread(half, "PNG").getpixel((0, 0)) == (255, 127, 127)
    assert reread(Image.fromarray(np.full((4, 4), 0x8080, np.uint16)), "PNG").getpixel((0, 0)) == (128, 128, 128)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert reread(palette, "PNG").getpixel((0, 0)) == (10, 20, 30)


def test_exif_turns_the_picture() -> None:
    image = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (4, 8)


def test_the_contact_sheet_shows_what_cannot_be_read(bad: Path) -> None:
    sheet = contact_sheet(open_dataset(str(bad)))
    assert sheet.width == 8 * 104
    assert (255, 0, 0) in {sheet.getpixel((x, 4 + 48)) for x in range(sheet.width)}


@pytest.mark.parametrize("harm", ["header cut", "header damaged"])
def test_a_shard_that_ends_in_its_middle_is_refused(tmp_path: Path, harm: str) -> None:
    """tarfile takes a header that it cannot read for the end of the archive."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(encoded(i))
            archive.addfile(member, io.BytesIO(encoded(i)))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    start = content.index(b"1.png")
    if harm == "header cut":
        del content[start + 300 :]
    else:
        content[start] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.tar is truncated or damaged: at byte {start:,} of"):
        open_dataset(str(tmp_path))


def test_nothing_at_all_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "captions.txt").write_text("")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "the data set: it has no picture" in capsys.readouterr().out


def test_links_to_nowhere_and_odd_names_are_listed(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "two\nlines.png").write_text("no picture")
    report = check.examine(open_dataset(str(tmp_path)))
    assert {p.key for p in report.problems if p.kind == "unreadable"} == {"gone.png", "two\nlines.png"}
    assert r"'two\nlines.png': not a picture" in check.summary(report)
