"""Hands cut out of photographs: foregrounds as renders are, laid wherever hands have to be.

Copy-paste augmentation: Ghiasi et al., CVPR 2021, arXiv:2012.07177.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from handmesh.data.formats.jsonl import JsonlData
from handmesh.data.sample import RawSample
from handmesh.errors import DataError

_MARGIN = 2  # px left around what is not transparent, so that only what the photograph cut goes on beyond


class CutOut(NamedTuple):
    """A right hand (`handmesh.synth.crowd.Foreground`); left ones are mirrored."""

    image: NDArray[np.uint8]  # (h, w, 4) RGB times alpha, then alpha
    keypoints: NDArray[np.float64]  # (21, 2) px


def cut_out(sample: RawSample) -> CutOut | None:
    """The hand of a photograph that has an `alpha`; None where it has none, or not all keypoints are known.

    Raises DataError for an alpha that cannot be read.
    """
    seen = sample.labels.keypoints_or_projection()
    if sample.alpha is None or seen is None or not seen[1].all():
        return None
    alpha = sample.alpha()
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        return None
    y0, x0 = max(int(rows[0]) - _MARGIN, 0), max(int(columns[0]) - _MARGIN, 0)
    cut = (slice(y0, int(rows[-1]) + 1 + _MARGIN), slice(x0, int(columns[-1]) + 1 + _MARGIN))
    mask = np.ascontiguousarray(alpha[cut])
    color = cv2.multiply(np.ascontiguousarray(sample.image[cut]), cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR), scale=1 / 255)
    image, keypoints = np.dstack([color, mask]), seen[0] - (x0, y0)
    if not sample.labels.hand.right:
        image = np.ascontiguousarray(image[:, ::-1])
        keypoints = np.column_stack([image.shape[1] - 1 - keypoints[:, 0], keypoints[:, 1]])
    return CutOut(np.asarray(image, np.uint8), keypoints)


@dataclass(frozen=True)
class CutOuts:
    """The hands of labels (`handmesh label --cut-out`) that are cut out. Opens files at first use."""

    paths: Sequence[Path]

    @cached_property
    def _places(self) -> list[tuple[JsonlData, int]]:
        sets = [JsonlData(path) for path in self.paths]
        places = [
            (photos, index) for photos in sets for index in range(len(photos)) if photos.record(index).get("alpha")
        ]
        if not places:
            raise DataError(f"{', '.join(map(str, self.paths))}: no hand has an alpha; make them with label --cut-out.")
        return places

    def draw(self, rng: np.random.Generator) -> CutOut:
        """Any of them. Raises DataError where one cannot be read."""
        for _ in range(100):
            photos, index = self._places[rng.integers(len(self._places))]
            if (found := cut_out(photos[index])) is not None:
                return found
        raise DataError(f"{', '.join(map(str, self.paths))}: of 100 hands, none is cut out and has all its keypoints.")
