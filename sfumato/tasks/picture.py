"""A picture that knows how it was made, in memory and in its file.

PNG: text ``parameters`` as A1111 writes it, and text ``sfumato``, the whole recipe as JSON. JPEG and WebP: the same two
as EXIF UserComment and MakerNote.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from sfumato.core.config import from_dict, table
from sfumato.core.errors import CapacityError, RequestError, nearest
from sfumato.core.files import atomic_file
from sfumato.core.request import Request
from sfumato.tasks.infotext import Reading, as_titled, read, write

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 8192 * 8192
"""Of a file that is opened; far above what is drawn, far below what fills the memory."""
MAX_BYTES = 1 << 29
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PARAMETERS, RECIPE = "parameters", "sfumato"
EXIF, USER_COMMENT, MAKER_NOTE = ExifTags.IFD.Exif, ExifTags.Base.UserComment, ExifTags.Base.MakerNote
UNICODE = b"UNICODE\0"
NUMBERS = r"(:-?\d+(\.\d+)?(e-?\d+)?){1,2}$"
"""At the end of a LoRA's name: its strengths."""
OTHERS = {"workflow": "ComfyUI", "prompt": "ComfyUI", "invokeai_metadata": "InvokeAI", "dream": "InvokeAI"}
"""Texts in which other programs keep their recipes, which are not read."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels and what is known about them.

    Attributes:
        image: in mode RGB.
        recipe: ``request`` (the fields of ``Request``), ``model`` (see ``tasks.recipe.identity``), ``versions``,
            ``device``, ``dtype``, ``size``, ``seed``; empty where the picture was not made by sfumato.
        text: A1111's parameters as they stood in the file, if they did.
        notes: what was changed or could not be read when the file was opened.
    """

    image: Image.Image
    recipe: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(pixels: "Tensor | NDArray[np.uint8]", recipe: Mapping[str, Any] | None = None) -> "Picture":
        """A picture of a [3, H, W] uint8 tensor on the CPU, or of a [H, W, 3] uint8 array."""
        array = pixels if isinstance(pixels, np.ndarray) else pixels.permute(1, 2, 0).numpy()
        return Picture(Image.fromarray(np.ascontiguousarray(array)), recipe or {})

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """[H, W, 3], uint8."""
        return np.array(self.image)

    @property
    def seed(self) -> int:
        """The seed that gives this picture alone.

        Raises:
            RequestError: the picture does not tell.
        """
        seed = self.recipe.get("seed", self.reading().request.seed)
        if seed is None:
            raise RequestError("This picture does not say which seed it was drawn with.")
        return int(seed)

    @property
    def parameters(self) -> str:
        """A1111's text: as it was found, or of the recipe; empty where nothing is known."""
        if self.text or not self.recipe:
            return self.text
        model, versions, loras = (table(self.recipe, name) for name in ("model", "versions", "loras"))
        facts = {
            "Model": _short(model.get("name")),
            "Model hash": str(model.get("file_sha256") or model.get("sha256") or "")[:10],
            "VAE": _short(table(model, "opened").get("vae")),
            "Lora hashes": ", ".join(
                f"{_short(re.sub(NUMBERS, '', name))}: {table(loras, name).get('short')}" for name in loras
            ),
            "Refiner": _short(table(self.recipe, "refiner").get("name")),
            "Version": f"sfumato {versions.get('sfumato', '')}".strip(),
        }
        return write(as_titled(self.reading().request), {key: value for key, value in facts.items() if value})

    def reading(self) -> Reading:
        """What was asked for when this was drawn: exactly, from sfumato's recipe; else as far as A1111's text goes.

        Raises:
            ConfigError: a recipe that this version cannot read.
        """
        if "request" in self.recipe:
            return Reading(from_dict(Request, self.recipe["request"], "the picture's recipe"))
        return read(self.text)

    def encode(self, format: str = "PNG", quality: int = 95) -> bytes:
        """The content of a file.

        Args:
            format: ``PNG``, ``JPEG`` or ``WEBP``.
            quality: 1 to 100 of JPEG and WebP; 100 makes WebP lossless.

        Raises:
            CapacityError: a recipe that is too long for JPEG, whose EXIF holds 64 kB.
        """
        if format not in FORMATS.values():
            raise RequestError(f"There is no picture format {format!r}{nearest(format, FORMATS.values())}")
        if not 1 <= quality <= 100:
            raise RequestError(f"quality = {quality}: must be from 1 to 100.")
        target, text = io.BytesIO(), self.parameters
        recipe = json.dumps(dict(self.recipe)) if self.recipe else ""
        if format == "PNG":
            info = PngImagePlugin.PngInfo()
            if text:
                info.add_text(PARAMETERS, text.encode("utf-8", "replace").decode())
            if recipe:
                info.add_text(RECIPE, recipe)
            self.image.save(target, format, pnginfo=info)
            return target.getvalue()
        exif = Image.Exif()
        if text:
            exif.get_ifd(EXIF)[USER_COMMENT] = UNICODE + text.encode("utf-16-be", "replace")
        if recipe:
            exif.get_ifd(EXIF)[MAKER_NOTE] = recipe.encode()
        if format == "JPEG":
            if len(exif.tobytes()) > 65_500:
                raise CapacityError(
                    "The recipe is too long for JPEG, which has 64 kB for it; save the picture as PNG or WebP."
                )
            self.image.save(target, format, quality=quality, subsampling=0, exif=exif)
        else:
            self.image.save(target, format, quality=quality, lossless=quality == 100, exif=exif)
        return target.getvalue()

    def save(self, path: str | Path, quality: int = 95) -> None:
        """Write a file, whole or not at all; its suffix says the format. Folders on the way are made.

        Raises:
            CapacityError: no room on the disk, or for the recipe. RequestError: an unknown suffix, no permission.
        """
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise RequestError(f"{path}: pictures are saved as {', '.join(FORMATS)}, not as {path.suffix!r}.")
        content = self.encode(FORMATS[path.suffix.lower()], quality)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise RequestError(f"{path} was not written: {problem.strerror}.") from None
        with atomic_file(path) as file:
            file.write(content)

    @staticmethod
    def open(source: str | Path | bytes, where: str = "The picture") -> "Picture":
        """Read a PNG, JPEG or WebP, whatever its name, upright and as RGB (on white where it is transparent).

        Args:
            where: what to call bytes in messages.

        Raises:
            RequestError: no such file, or not one of these. CapacityError: too many bytes or pixels.
        """
        return _decode(source, where) if isinstance(source, bytes) else _decode(read_file(Path(source)), str(source))


def read_file(path: Path) -> bytes:
    """The content of a picture's file.

    Raises:
        RequestError: no such file. CapacityError: too many bytes.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CapacityError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read.")
        return path.read_bytes()
    except OSError as problem:
        raise RequestError(f"{path} cannot be read: {problem.strerror}.") from None
    except ValueError as problem:  # no file can have such a name
        raise RequestError(f"{str(path)!r} cannot be read: {problem}.") from None


def grid(pictures: Sequence[Picture], columns: int | None = None) -> Picture:
    """All pictures on one sheet, row by row, as square as can be, and without a gap if that takes at most half as many
    columns again; its recipe is the first one's, with all seeds.

    Args:
        columns: pictures side by side.

    Raises:
        RequestError: no pictures, or no columns.
    """
    if not pictures or (columns is not None and columns < 1):
        raise RequestError(f"A grid of {len(pictures)} pictures in {columns} columns cannot be made.")
    count = len(pictures)
    square = math.ceil(math.sqrt(count))
    full = next((n for n in range(square, square + square // 2 + 1) if count % n == 0), square)
    columns = min(columns or full, count)
    width, height = (max(p.image.size[side] for p in pictures) for side in (0, 1))
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.image, (i % columns * width, i // columns * height))
    first = pictures[0].recipe
    seeds = [picture.recipe.get("seed") for picture in pictures]
    return Picture(sheet, {**first, "grid": {"columns": columns, "seeds": seeds}} if first else {}, pictures[0].text)


def _short(source: Any) -> str:
    """The name of a model without where it lies, which is nobody's business."""
    return re.sub(r"\.(safetensors|ckpt|pth?)$", "", Path(str(source or "")).name)


def _decode(content: bytes, where: str) -> Picture:
    notes: list[str] = []
    try:
        with Image.open(io.BytesIO(content), formats=sorted(set(FORMATS.values()))) as file:
            if file.width * file.height > MAX_PIXELS:
                raise CapacityError(
                    f"{where} has {file.width} x {file.height} pixels; at most {MAX_PIXELS:,} are read. Scale it down."
                )
            file.load()
            recipe, text = _metadata(file, notes)
            image = _rgb(file, notes)
    except Image.DecompressionBombError as problem:
        raise CapacityError(f"{where} would fill the memory: {problem}") from None
    except UnidentifiedImageError:  # whose words name an object in memory
        raise RequestError(f"{where} is not a PNG, JPEG or WebP.") from None
    except (OSError, SyntaxError, ValueError, EOFError) as problem:
        raise RequestError(f"{where} is not a PNG, JPEG or WebP that can be read: {problem}.") from None
    return Picture(image, recipe, text, tuple(notes))


def _rgb(file: Image.Image, notes: list[str]) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(file)
    except Exception as problem:  # see _metadata
        notes.append(f"Whether the picture is upright cannot be read: {problem}.")
        image = file
    if image.mode.startswith(("I", "F")):
        notes.append("16-bit grey was reduced to 8 bits.")
        scaled = np.asarray(image).astype(np.float64) / (65535.0 / 255.0)
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        notes.append("Transparent parts were put on white.")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _metadata(file: Image.Image, notes: list[str]) -> tuple[dict[str, Any], str]:
    """The recipe and A1111's text of an open file, from wherever they stand."""
    recipe = file.info.get(RECIPE, "") if file.format == "PNG" else ""
    text = file.info.get(PARAMETERS, "") if file.format == "PNG" else ""
    try:
        exif = file.getexif().get_ifd(EXIF)
        text = text or _user_comment(exif.get(USER_COMMENT, b""))
        note = exif.get(MAKER_NOTE, b"")
        if not recipe and isinstance(note, bytes) and note.startswith(b"{"):
            recipe = note.decode("utf-8", "replace")
    except Exception as problem:  # cameras and editors write EXIF that breaks every rule; the picture is still good
        notes.append(f"The EXIF data cannot be read: {problem}.")
    for key, program in OTHERS.items():
        if key in file.info and not recipe:
            notes.append(f"The recipe of {program} ({key}) is not read.")
    try:
        found = json.loads(recipe) if recipe else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        notes.append("The recipe is damaged and was left out.")
        found = {}
    return found, str(text)


def _user_comment(comment: bytes | str) -> str:
    """EXIF 2.3, section 4.6.5: eight bytes name the character code."""
    if isinstance(comment, str):
        return comment
    code, rest = comment[:8], comment[8:]
    if code == UNICODE:
        order = "utf-16-le" if rest[1:2] == b"\0" and rest[:1] != b"\0" else "utf-16-be"  # of the first character
        return rest.decode(order, "replace").removeprefix("\ufeff")
    return rest.decode("utf-8", "replace").strip("\0 ")
