"""What a clip may be: of its bytes, before anything reads them, and of its pictures, before they are looked at."""

from __future__ import annotations

from handmesh.errors import ImageError
from handmesh.files.video import ClipSource, Frame

_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def suffix_of(head: bytes) -> str | None:
    """The file suffix of a clip that begins so; None when it is no MP4, MOV, WebM, MKV or AVI file.

    FFmpeg reads much more: playlists, which open other files and addresses of this machine, among it.
    """
    if head[4:8] in _MOV_ATOMS:
        return ".mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return ".webm"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return ".avi"
    return None


class LimitedSource:
    """A `FrameSource` that ends with an error where a clip is too long or too large."""

    live = False

    def __init__(self, source: ClipSource, *, max_frames: int, max_pixels: int) -> None:
        """Raises ImageError when the clip says that it is too long."""
        self._source, self._max_frames, self._max_pixels = source, max_frames, max_pixels
        self.name, self.fps, self.digest = source.name, source.fps, source.digest
        self.frame_count = source.frame_count
        if self.frame_count is not None and self.frame_count > max_frames:
            raise self._too_long(f"{self.frame_count:,}")

    @property
    def remarks(self) -> list[str]:
        return self._source.remarks

    def read(self) -> Frame | None:
        frame = self._source.read()
        if frame is None:
            return None
        if frame.index >= self._max_frames:
            raise self._too_long(f"more than {self._max_frames:,}")
        height, width = frame.image.shape[:2]
        if width * height > self._max_pixels:
            raise ImageError(
                f"The clip has pictures of {width} x {height}, more than {self._max_pixels:,} pixels, the limit."
            )
        return frame

    def close(self) -> None:
        self._source.close()

    def _too_long(self, count: str) -> ImageError:
        return ImageError(f"The clip has {count} pictures; the limit is {self._max_frames:,}. Cut it into parts.")
