"""Data sets as people keep them: one layout a file, one line in the table."""

from pathlib import Path

from sfumato.core.errors import DataError
from sfumato.core.registry import Registry
from sfumato.training.data import Dataset

READERS = Registry(
    "layout",
    {
        "numbered": "sfumato.training.readers.numbered:Numbered",
        "metadata": "sfumato.training.readers.metadata:Metadata",
        "sidecar": "sfumato.training.readers.sidecar:Sidecar",
        "classes": "sfumato.training.readers.classes:Classes",
        "plain": "sfumato.training.readers.plain:Plain",
        "parquet": "sfumato.training.readers.parquet:Parquet",
        "tar": "sfumato.training.readers.tar:Tar",
        "hub": "sfumato.training.readers.hub:Hub",
    },
    aliases={"imagefolder": "metadata", "webdataset": "tar", "txt": "sidecar"},
    error=DataError,
)


def open_dataset(where: str, layout: str | None = None, image: str = "image", caption: str = "text") -> Dataset:
    """The data set at ``where``, its layout recognised by what lies there unless it is named.

    Args:
        where: a folder; a ``.parquet`` or ``.tar`` file; or ``hub:owner/name[:split]`` for one of the Hugging Face hub.
        layout: one of ``READERS``.
        image: the column of pictures, in layouts that have columns.
        caption: the column of captions, likewise.

    Raises:
        DataError: nothing there, no layout fits, or several do; the message names them.
    """
    if where.startswith("hub:"):
        return _make("hub", where, image, caption)
    path = Path(where).expanduser()
    if not path.exists():
        raise DataError(f"There is no {path}. (For a data set of the Hugging Face hub: hub:{where})")
    if layout is None:
        fitting = [name for name in READERS if READERS.get(name).fits(path)]
        if not fitting:
            raise DataError(f"{path} holds no pictures in any layout known here ({', '.join(READERS)}).")
        if len(fitting) > 1:
            raise DataError(f"{path} can be read as {' or as '.join(fitting)}; name the layout that is meant.")
        layout = fitting[0]
    return _make(layout, str(path), image, caption)


def _make(layout: str, where: str, image: str, caption: str) -> Dataset:
    dataset: Dataset = READERS.get(layout)(where, image, caption)
    return dataset
