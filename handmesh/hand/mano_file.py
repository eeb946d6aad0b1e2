"""Reading MANO's own files, MANO_RIGHT.pkl and MANO_LEFT.pkl, without running anything that is in them.

The originals were written by Python 2 with chumpy classes inside, so `pickle.load` needs a library that no longer
installs, and would do whatever a tampered copy says. Here the file's size is limited, `handmesh.system.inert_pickle`
rebuilds the arrays without executing anything, and `HandArrays.from_mapping` checks names, shapes, values and the joint
tree.

`add_mano` does this once and keeps the arrays as an .npz. `mano_directory` says where. Neither torch nor chumpy is
needed. Converted files are under MANO's licence, like the originals.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from handmesh.errors import AssetError, ExportError
from handmesh.hand import FINGER_ROTATION_COUNT, HandArrays, Handedness
from handmesh.hand.anatomy import palm_frame
from handmesh.system.atomic import write_atomically
from handmesh.system.inert_pickle import InertPickleError, read_pickle
from handmesh.system.paths import folder_in, user_data_folder

logger = logging.getLogger(__name__)

MANO_PAGE = "https://mano.is.tue.mpg.de"
MAX_FILE_BYTES = 64 << 20  # the originals have 3.8 MB
_LENGTHS = (0.05, 0.5)  # metres, the longest side at rest; MANO's has about 0.2

# The files as they are published, for messages only: converted copies are common and welcome.
ORIGINAL_SHA256 = {
    "45d60aa3b27ef9107a7afd4e00808f307fd91111e1cfa35afd5c4a62de264767": Handedness.RIGHT,
    "c4022f7083f2ca7c78b2b3d595abbab52debd32b09d372b16923a801f0ea6a30": Handedness.LEFT,
}


# ---------------------------------------------------------------------------------------------------- where


def mano_directory() -> Path:
    r"""Where converted MANO files live: nobody has to say it twice.

    ``$HANDMESH_MANO_DIR`` when it is set; the checkout's ``mano_assets/`` when handmesh runs from one (git ignores what
    is in it); otherwise a folder of the user's, since an installed package's own may be read-only and is replaced by
    the next upgrade: ``~/.local/share/handmesh/mano`` (or under ``$XDG_DATA_HOME``), on macOS
    ``~/Library/Application Support/handmesh/mano``, on Windows ``%LOCALAPPDATA%\handmesh\mano``.
    """
    if given := folder_in("HANDMESH_MANO_DIR"):
        return given
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "mano_assets").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "mano_assets"
    return user_data_folder() / "mano"


def mano_file(handedness: Handedness = Handedness.RIGHT) -> Path:
    """Where `add_mano` puts one side."""
    return mano_directory() / f"MANO_{handedness.upper()}.npz"


def load_mano(handedness: Handedness = Handedness.RIGHT) -> HandArrays:
    """What `handmesh mano add` brought, or the .pkl beside it. Raises AssetError with instructions."""
    converted = mano_file(handedness)
    for path in (converted, converted.with_suffix(".pkl")):
        if path.is_file():
            arrays = read_mano(path)
            if handedness_of(arrays) != handedness:
                raise AssetError(f"{path} is not a {handedness} hand: add the right file with `handmesh mano add`.")
            return arrays
    raise AssetError(missing_mano(handedness))


def missing_mano(handedness: Handedness) -> str:
    """What to do when MANO is asked for and is not there: one page."""
    name = f"MANO_{handedness.upper()}.pkl"
    return (
        f"There is no MANO model of a {handedness} hand at {mano_file(handedness)}.\n"
        "MANO may not be shipped with handmesh; it is free for non-commercial research:\n"
        f"  1. Register at {MANO_PAGE} and accept the licence.\n"
        "  2. Download 'Models & Code' (mano_v1_2.zip) and unpack it.\n"
        f"  3. handmesh mano add mano_v1_2/models/{name}\n"
        "Or use the built-in hand, which needs no licence: --hand-model builtin."
    )


# ---------------------------------------------------------------------------------------------------- adding


@dataclass(frozen=True)
class AddedMano:
    """What `add_mano` did."""

    path: Path
    arrays: HandArrays
    handedness: Handedness
    original: bool  # the file is, byte for byte, the published one
    left_shape_bug: bool | None  # of the file that was read; None: cannot be told (or a right hand)
    left_shape_fixed: bool


def add_mano(path: Path, *, fix_left_shape: bool = False, directory: Path | None = None) -> AddedMano:
    """Read a MANO file safely, check it, and keep its arrays in `directory` (by default `mano_directory()`).

    In the published MANO_LEFT.pkl the shape directions are a copy of the right hand's: their x should have the other
    sign (vchoutas/smplx#48). Betas then do something else to a left hand than to a right one. `fix_left_shape` turns
    the sign. It is an option because data that was fitted with the file as published (DexYCB, ARCTIC, ...) has betas
    that fit that file only. Raises AssetError and writes nothing when the file is not a sound MANO model.
    """
    path = Path(path)
    content = _read_file(path)
    sha256 = hashlib.sha256(content).hexdigest()
    arrays = _parse(content, str(path))
    handedness = handedness_of(arrays)
    directory = mano_directory() if directory is None else Path(directory)
    bug: bool | None = None
    if handedness == Handedness.LEFT:
        bug = ORIGINAL_SHA256.get(sha256) == Handedness.LEFT or None
        if (right := _other_side(path, directory)) is not None:
            bug = has_left_shape_bug(arrays, right)
    if fix_left_shape:
        if handedness == Handedness.RIGHT:
            raise AssetError(f"{path} is a right hand: only left hands have shape directions to mend.")
        if bug is None:
            raise AssetError(
                f"Whether the shape directions of {path} are those of the right hand can only be told beside the right "
                "hand: run `handmesh mano add` on MANO_RIGHT.pkl first."
            )
        if bug:
            arrays = replace(arrays, shapedirs=arrays.shapedirs * np.array([-1.0, 1.0, 1.0])[:, None])
    provenance = {"source_sha256": sha256, "left_shape_fixed": bool(fix_left_shape and bug), "licence": "MANO"}
    target = directory / f"MANO_{handedness.upper()}.npz"
    called = [side for side in Handedness if side in re.split("[^a-z]+", path.name.lower())]
    if called and handedness not in called:
        logger.warning("%s is called a %s hand, but is a %s one: kept as %s", path, called[0], handedness, target.name)
    buffer = io.BytesIO()
    values = {item.name: getattr(arrays, item.name) for item in fields(arrays)}
    np.savez_compressed(buffer, **values, provenance=np.array(json.dumps(provenance)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(target, buffer.getvalue())
    except (OSError, ExportError) as error:
        raise AssetError(f"{target} cannot be written: {error}") from error
    return AddedMano(
        path=target,
        arrays=arrays,
        handedness=handedness,
        original=sha256 in ORIGINAL_SHA256,
        left_shape_bug=bug,
        left_shape_fixed=bool(fix_left_shape and bug),
    )


def handedness_of(arrays: HandArrays) -> Handedness:
    """Which hand a model is, from its geometry: file names lie. Raises AssetError when it has no palm.

    Dorsal is +y in MANO's rest frame.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        palm = palm_frame(arrays)
    if not np.isfinite([palm.distal, palm.radial]).all():
        raise AssetError("The joints of the hand model coincide: it has no palm. Is it a MANO file?")
    right = np.cross(palm.distal, palm.radial) @ palm.dorsal > 0
    return Handedness.RIGHT if right else Handedness.LEFT


def has_left_shape_bug(left: HandArrays, right: HandArrays) -> bool:
    """Whether the left hand's shape directions are the right hand's own instead of their mirror image.

    Those of the published files agree to a sum of 1 over 7,780 x components (the test of smplx#48); here: whichever of
    the two they are closer to.
    """
    copied = np.abs(left.shapedirs[:, 0] - right.shapedirs[:, 0]).sum()
    mirrored = np.abs(left.shapedirs[:, 0] + right.shapedirs[:, 0]).sum()
    return bool(copied < mirrored)


def _other_side(path: Path, directory: Path) -> HandArrays | None:
    """The right hand that belongs to a left one: already added, or lying beside it."""
    for candidate in (directory / "MANO_RIGHT.npz", path.with_name("MANO_RIGHT.pkl")):
        if candidate.is_file():
            arrays = read_mano(candidate)
            if handedness_of(arrays) == Handedness.RIGHT:
                return arrays
    return None


# ---------------------------------------------------------------------------------------------------- reading


def read_mano(path: str | os.PathLike[str]) -> HandArrays:
    """Read a MANO model: an original pickle, a chumpy-free copy of one, or an .npz. Executes nothing in it.

    Raises AssetError for a file that is missing, too large, damaged, hostile, or no hand model.
    """
    return _parse(_read_file(Path(path)), str(path))


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is a folder or a device" if path.exists() else "does not exist"
            raise AssetError(f"{path} {what}: wanted MANO_RIGHT.pkl or MANO_LEFT.pkl of {MANO_PAGE}.")
        _check_no_archive(path)
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AssetError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > MAX_FILE_BYTES:
        raise AssetError(f"{path} has over {MAX_FILE_BYTES >> 20} MB; a MANO file has 3.8 MB. Is it another file?")
    return content


def _check_no_archive(path: Path) -> None:
    """What MANO's site gives is a zip with both hands in it."""
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            hands = [name for name in archive.namelist() if name.endswith(("MANO_RIGHT.pkl", "MANO_LEFT.pkl"))]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise AssetError(f"{path} is a damaged archive ({error}): download it again.") from error
    if hands:
        raise AssetError(f"{path} is an archive: unpack it, and add {' and '.join(hands)} from it.")


def _parse(content: bytes, source: str) -> HandArrays:
    return _checked(HandArrays.from_mapping(_arrays_in(content, source), source), source)


def _checked(arrays: HandArrays, source: str) -> HandArrays:
    """Is it the size of a hand in metres? Some copies are in millimetres."""
    length = float(np.ptp(arrays.v_template, axis=0).max())
    if not _LENGTHS[0] < length < _LENGTHS[1]:
        raise AssetError(
            f"{source}: the hand at rest is {length:.3g} long, wanted metres, {_LENGTHS[0]} to {_LENGTHS[1]}. Is it a "
            "copy in millimetres, or of another thing?"
        )
    return arrays


def _arrays_in(content: bytes, source: str) -> dict[str, Any]:
    if content.startswith(b"PK"):
        return _read_npz(content, source)
    if content.startswith(b"version https://git-lfs"):
        raise AssetError(f"{source} is a Git LFS pointer, not the file itself: run `git lfs pull` where it came from.")
    names = [item.name for item in fields(HandArrays)]
    texts = [name for name in names if name.startswith("bs_")]
    try:
        arrays = read_pickle(content, "MANO file", [name for name in names if name not in texts], texts)
    except InertPickleError as error:
        raise AssetError(f"{source} {error}") from error
    for name in texts:
        if not isinstance(arrays.get(name, ""), str):
            raise AssetError(f"{source} is refused: {name} is no text.")
    if "hands_coeffs" not in arrays:  # some copies leave the training poses out
        arrays["hands_coeffs"] = np.empty((0, FINGER_ROTATION_COUNT))
    return arrays


def _read_npz(content: bytes, source: str) -> dict[str, Any]:
    wanted = {item.name for item in fields(HandArrays)}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            infos = {info.filename: info for info in archive.zip.infolist()}
            if sum(info.file_size for info in infos.values()) > MAX_FILE_BYTES:
                raise AssetError(f"{source} is refused: unpacked it would have over {MAX_FILE_BYTES >> 20} MB.")
            return {name: archive[name] for name in archive.files if name in wanted}
    except AssetError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on damaged bytes
        raise AssetError(f"{source} cannot be read as a hand model (.npz): {error}.") from error
