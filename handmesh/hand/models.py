"""The hand models there are, by name: where each comes from and under which licence.

A further model in MANO's format is a further entry of `HAND_MODELS`, and nothing else: settings (`model.hand`), model
and exported files, labels, scores, checks, `doctor` and the command line all read it from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handmesh.errors import AssetError, ConfigError
from handmesh.hand.arrays import HandArrays, builtin_hand
from handmesh.hand.mano_file import MANO_PAGE, load_mano, mano_file
from handmesh.hand.skeleton import Handedness

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandModelSource:
    """A hand model as users name it."""

    name: str  # in settings, files and options
    title: str  # in messages
    licence: str  # what a file that contains its arrays says of them
    load: Callable[[Handedness], HandArrays]  # raises AssetError, with instructions where its files are not there
    file: Callable[[Handedness], Path] | None = None  # which the user brought; None: it ships with handmesh
    how_to_add: str = ""  # one line
    how_to_match: str = ""  # what to do where a model file was trained with another version of it
    mano_joints: bool = True  # whether its joints lie where MANO has them, or our own (`handmesh.hand.definitions`)

    def is_there(self, handedness: Handedness = Handedness.RIGHT) -> bool:
        """Whether it can be loaded, unless its file is damaged."""
        if self.file is None:
            return True
        path = self.file(handedness)
        return path.is_file() or path.with_suffix(".pkl").is_file()


HAND_MODELS: Final = {
    source.name: source
    for source in (
        HandModelSource(
            "builtin",
            "the built-in hand",
            "Apache-2.0 (the built-in hand of handmesh)",
            builtin_hand,
            how_to_match="use the handmesh version it was made with",
            mano_joints=False,
        ),
        HandModelSource(
            "mano",
            "MANO",
            "MANO's licence, https://mano.is.tue.mpg.de/license.html: non-commercial research; this file holds MANO "
            "and must not be passed on",
            load_mano,
            mano_file,
            how_to_add=f"register at {MANO_PAGE}, download MANO, then: handmesh mano add MANO_RIGHT.pkl",
            how_to_match="give `handmesh mano add` the MANO_RIGHT.pkl it was trained with",
        ),
    )
}


def load_hand(name: str = "builtin", handedness: Handedness | str = Handedness.RIGHT) -> HandArrays:
    """The arrays of a hand model by name, "builtin" or "mano": `load_hand().shaped(betas).posed(pose).vertices`.

    Raises ConfigError for another name or side, AssetError with instructions where MANO's files were not added.
    """
    if name not in HAND_MODELS:
        raise ConfigError(f"Hand model {name!r}: wanted {' or '.join(HAND_MODELS)}.")
    return HAND_MODELS[name].load(Handedness.parse(handedness))


def hand_arrays(hand: HandArrays | str | None) -> HandArrays:
    """A hand model, or the right hand of a name; None: the built-in one's.

    Raises what `load_hand` raises, and ConfigError for anything else.
    """
    if isinstance(hand, HandArrays):
        return hand
    if hand is None or isinstance(hand, str):
        return load_hand("builtin" if hand is None else hand)
    raise ConfigError(f"The hand is of type {type(hand).__name__}, wanted a name or what load_hand(name, side) gives.")


def hands_at_hand() -> Iterator[tuple[HandModelSource, HandArrays]]:
    """The right hands that can be loaded here, the built-in one first; a damaged one is left out with a warning."""
    for source in HAND_MODELS.values():
        if source.is_there():
            try:
                yield source, source.load(Handedness.RIGHT)
            except AssetError as error:
                logger.warning("%s is not tried: %s", source.title, error)


def name_of(sha256: str | None) -> str | None:
    """The name of the right hand whose `HandArrays.sha256` this is, among those at hand."""
    return next((source.name for source, hand in hands_at_hand() if hand.sha256 == sha256), None)


def has_mano_joints(sha256: str | None, name: str = "") -> bool:
    """Whether a right hand's joints lie where MANO has them (`handmesh.hand.definitions`), by its `HandArrays.sha256`.

    `name`: what it is called, for one that is not at hand. What is known by neither is taken for a copy of MANO, of
    which several files are about.
    """
    source = HAND_MODELS.get(name_of(sha256) or name)
    return source is None or source.mano_joints
