"""Pictures and their recipes, through files."""

import io
import json
import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from sfumato.core.config import to_dict
from sfumato.core.errors import CapacityError, ConfigError, RequestError
from sfumato.core.request import Request
from sfumato.tasks.picture import Picture, grid

PROMPT = "a fox, (red:1.2), 狐 🦊\nline two"


def recipe(seed: int = 7, prompt: str = PROMPT) -> dict[str, Any]:
    request = Request(prompt, "blurry", width=24, height=16, seed=seed, steps=20, cfg_scale=7.5, sigmas=(1.5, 0.0))
    return {
        "request": to_dict(request), "versions": {"sfumato": "0.1.0", "torch": "2"}, "device": "cpu",
        "model": {"family": "sd1", "name": "/home/me/fox-1.5.safetensors", "sha256": "ab" * 32}, "dtype": "float32",
        "size": [24, 16], "seed": seed,
    }


def pixels(seed: int = 0) -> torch.Tensor:
    """[3, 16, 24]: a gradient, a little other for each seed."""
    return (torch.arange(3 * 16 * 24).reshape(3, 16, 24) // 5 + seed).to(torch.uint8)


@pytest.fixture
def picture() -> Picture:
    return Picture.of(pixels(), recipe())


def test_pixels_are_what_they_were(picture: Picture) -> None:
    assert picture.image.size == (24, 16)
    assert np.array_equal(picture.pixels, pixels().permute(1, 2, 0).numpy())
    assert np.array_equal(Picture.of(picture.pixels).pixels, picture.pixels)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "deep/er/a.webp"])
def test_the_recipe_travels_in_the_file(picture: Picture, tmp_path: Path, name: str) -> None:
    picture.save(tmp_path / name)
    found = Picture.open(tmp_path / name)
    assert found.recipe == picture.recipe
    assert found.seed == 7
    assert found.notes == ()
    assert found.text == found.parameters == picture.parameters
    assert found.parameters.startswith(PROMPT + "\nNegative prompt: blurry\nSteps: 20, CFG scale: 7.5, Seed: 7, ")
    assert "Model: fox-1.5, Model hash: ababababab, Version: sfumato 0.1.0" in found.parameters
    reading = found.reading()
    assert to_dict(reading.request) == picture.recipe["request"]
    assert reading.not_understood == {}
    error = np.abs(found.pixels.astype(int) - picture.pixels).mean()
    assert error == 0 if name.endswith("png") else error < 8


def test_samplers_are_called_as_a1111_calls_them() -> None:
    told = recipe()
    told["request"] |= {"sampler": "dpmpp_2m", "spacing": "sgm_uniform"}
    told["model"]["opened"] = {"vae": "/home/me/soft.safetensors"}
    told["refiner"] = {"name": "org/refiner"}
    text = Picture.of(pixels(), told).parameters
    assert "Steps: 20, Sampler: DPM++ 2M, Schedule type: SGM Uniform, " in text
    assert "VAE: soft, Refiner: refiner, " in text
    told["request"] |= {"sampler": None, "spacing": None}
    assert "Sampler" not in Picture.of(pixels(), told).parameters
    assert Picture.of(pixels(), {**recipe(), "model": "sd1", "versions": []}).parameters.endswith("Version: sfumato")


def test_lossless_webp(picture: Picture, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.webp", quality=100)
    assert np.array_equal(Picture.open(tmp_path / "a.webp").pixels, picture.pixels)


def test_other_programs_find_the_text_where_they_look(picture: Picture) -> None:
    with Image.open(io.BytesIO(picture.encode("PNG"))) as png:
        assert isinstance(png, PngImagePlugin.PngImageFile)
        assert png.text["parameters"] == picture.parameters
        assert json.loads(png.text["sfumato"]) == picture.recipe
    with Image.open(io.BytesIO(picture.encode("JPEG"))) as jpeg:
        comment = jpeg.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + picture.parameters.encode("utf-16-be")


def test_strange_characters_survive(tmp_path: Path) -> None:
    strange = Picture.of(pixels(), recipe(prompt="nul \0 lone \ud800 tab \t "))
    for name in ("a.png", "a.jpg", "a.webp"):
        strange.save(tmp_path / name)
        assert Picture.open(tmp_path / name).recipe == strange.recipe


def foreign(format: str, text: str, order: str = "utf-16-be") -> bytes:
    image, target = Image.new("RGB", (8, 8)), io.BytesIO()
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        info.add_text("workflow", "{}")
        image.save(target, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(order)
        image.save(target, format, exif=exif)
    return target.getvalue()


@pytest.mark.parametrize(("format", "order"), [
    ("PNG", ""), ("JPEG", "utf-16-be"), ("JPEG", "utf-16-le"), ("WEBP", "utf-16-be"),
])
def test_foreign_pictures_are_read_as_far_as_it_goes(format: str, order: str) -> None:
    text = "a fox\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 8x8, Hires upscale: 2"
    found = Picture.open(foreign(format, text, order))
    assert found.recipe == {}
    assert found.parameters == text
    assert found.seed == 5
    reading = found.reading()
    assert reading.request == Request("a fox", steps=20, sampler="Euler a", seed=5, width=8, height=8)
    assert reading.not_understood == {"Hires upscale": "2", "RNG": "GPU"}
    assert found.notes == (("The recipe of ComfyUI (workflow) is not read.",) if format == "PNG" else ())
    again = Picture.open(found.encode())  # what was found is kept
    assert again.text == text


def test_a_picture_without_a_recipe() -> None:
    plain = Picture.open(Picture.of(pixels()).encode())
    assert (plain.recipe, plain.text, plain.parameters) == ({}, "", "")
    assert plain.reading().request == Request()
    with pytest.raises(RequestError, match="does not say which seed"):
        plain.seed  # noqa: B018


@pytest.mark.parametrize("damaged", ["{", "[1]", "[" * 100_000])
def test_a_damaged_recipe_is_said(damaged: str) -> None:
    info, target = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("sfumato", damaged)
    Image.new("RGB", (4, 4)).save(target, "PNG", pnginfo=info)
    found = Picture.open(target.getvalue())
    assert found.recipe == {}
    assert found.notes == ("The recipe is damaged and was left out.",)


def test_a_recipe_of_another_version_names_the_field() -> None:
    strange = recipe()
    strange["request"]["stepz"] = 3
    with pytest.raises(ConfigError, match=r"the picture's recipe: unknown key 'stepz'; did you mean 'steps'"):
        Picture.of(pixels(), strange).reading()


def test_transparency_deep_grey_and_turned_photographs(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    clear = Picture.open(tmp_path / "clear.png")
    assert clear.notes == ("Transparent parts were put on white.",)
    assert (clear.pixels == 255).all()

    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    deep = Picture.open(tmp_path / "deep.png")
    assert deep.notes == ("16-bit grey was reduced to 8 bits.",)
    assert (deep.pixels == 128).all()

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert Picture.open(tmp_path / "turned.jpg").image.size == (4, 8)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8192), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_is_unpacked(size: tuple[int, int]) -> None:
    with pytest.raises(CapacityError, match="The picture"):
        Picture.open(png(*size))


def test_what_is_no_picture_is_refused(tmp_path: Path, picture: Picture) -> None:
    whole = picture.encode()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 300])
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (4, 4)).save(tmp_path / "gif.png", "GIF")
    for name in ("cut.png", "text.png", "gif.png"):
        with pytest.raises(RequestError, match=f"{name} is not a PNG, JPEG or WebP"):
            Picture.open(tmp_path / name)
    with pytest.raises(RequestError, match=r"none.png cannot be read: No such file"):
        Picture.open(tmp_path / "none.png")


def test_what_cannot_be_saved_is_refused(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(RequestError, match=r"saved as .png, .jpg, .jpeg, .webp, not as '.bmp'"):
        picture.save(tmp_path / "a.bmp")
    with pytest.raises(RequestError, match="quality = 0"):
        picture.save(tmp_path / "a.jpg", quality=0)
    with pytest.raises(CapacityError, match="too long for JPEG"):
        Picture.of(pixels(), recipe(prompt="狐" * 20_000)).save(tmp_path / "a.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="was not written"):
        picture.save(tmp_path / "file" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RequestError, match=r"folder.png was not written: Is a directory"):
        picture.save(tmp_path / "folder.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow past 500 bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, picture: Picture, small_files: None) -> None:
    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(CapacityError, match=r"a.png was not written: .*free some space"):
        picture.save(tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_grid() -> None:
    pictures = [Picture.of(pixels(i), recipe(i)) for i in range(5)]
    sheet = grid(pictures)
    assert sheet.image.size == (3 * 24, 2 * 16)
    assert np.array_equal(sheet.pixels[16:, 24:48], pictures[4].pixels)
    assert (sheet.pixels[16:, 48:] == 255).all()  # a gap is white
    assert sheet.recipe["grid"] == {"columns": 3, "seeds": [0, 1, 2, 3, 4]}
    assert sheet.seed == 0
    eight = [Picture.of(pixels(i), recipe(i)) for i in range(8)]
    assert grid(eight).recipe["grid"]["columns"] == 4  # 3 would leave a gap
    assert grid(pictures, columns=9).image.size == (5 * 24, 16)
    assert grid(pictures, columns=1).image.size == (24, 5 * 16)
    for wrong in ([], pictures):
        with pytest.raises(RequestError, match="cannot be made"):
            grid(wrong, columns=0)
