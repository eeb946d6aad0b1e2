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

# Asked in this order whether a path is one of theirs. FreiHAND, with its versions, its splits and its official test
# set, is a kind of its own: `handmesh.data.formats.freihand`.
FORMATS: tuple[type[LabelledPhotos], ...] = (CocoWholeBody, DexYCB, HanCo, HInt, HO3D, InterHand, JsonlData)


def holds_photos(path: Path) -> bool:
    """Whether there are photographs with labels at `path`, in one of `FORMATS`."""
    return any(form.recognizes(path) for form in FORMATS)


def open_photos(path: Path, *, for_scoring: bool = False) -> LabelledPhotos:
    """The photographs at `path`; what no form recognizes is taken for JSONL, which says what is wrong with it.

    Raises DataError.
    """
    form = next((form for form in FORMATS if form.recognizes(path)), JsonlData)
    return form(path, for_scoring=for_scoring)
