"""Data sets on disk, one module each, and the table of the forms that photographs with labels have."""

from pathlib import Path

from handmesh.data.formats.coco_wholebody import CocoWholeBody
from handmesh.data.formats.dexycb import DexYCB
from handmesh.data.formats.hanco import HanCo
from handmesh.data.formats.hint import HInt
from handmesh.data.formats.ho3d import HO3D
from handmesh.data.formats.interhand import InterHand
from handmesh.data.formats.jsonl import JsonlData
from handmesh.data.formats.records import LabelledPhotos
from handmesh.errors import DataError

# Asked in this order whether a path is one of theirs. FreiHAND, with its versions, its splits and its official test
# set, is a kind of its own: `handmesh.data.formats.freihand`.
FORMATS: tuple[type[LabelledPhotos], ...] = (CocoWholeBody, DexYCB, HanCo, HInt, HO3D, InterHand, JsonlData)
_SHOWN = 4  # paths that a message names


def holds_photos(path: Path) -> bool:
    """Whether there are photographs with labels at `path`, in one of `FORMATS`."""
    return any(form.recognizes(path) for form in FORMATS)


def open_photos(path: Path, *, for_scoring: bool = False) -> LabelledPhotos:
    """The photographs at `path`; what no form recognizes is taken for JSONL, which says what is wrong with it.

    Raises DataError.
    """
    form = next((form for form in FORMATS if form.recognizes(path)), None)
    if form is None and (found := sets_near(path)) is not None:
        raise DataError(found)
    return (form or JsonlData)(path, for_scoring=for_scoring)


def sets_in(folder: Path) -> str | None:
    """Which published set lies in a folder, and the paths of its parts: a sentence for messages. None: none does."""
    for form in FORMATS:
        found = [path for name in form.paths for path in sorted(folder.glob(name)) or [folder / name]]
        if found := [path for path in found if form.recognizes(path)]:
            shown = ", ".join(map(str, found[:_SHOWN])) + (" and so on" if len(found) > _SHOWN else "")
            return f"{form.kind} is read part by part: give the path of one ({shown})."
    return None


def sets_near(path: Path) -> str | None:
    """Of a path that is no data set: what `sets_in` says of it, of the folders in it, and of those above it."""
    inside = sorted(one for one in path.iterdir() if one.is_dir()) if path.is_dir() else []
    for folder in (path, *inside, *path.parents[:3]):
        if (found := sets_in(folder)) is not None:
            return f"{path} is no data set. {found}"
    return None
