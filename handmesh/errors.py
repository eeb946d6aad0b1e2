"""Every error a user can cause or meet, under one root.

A message says what was found, what was wanted and what to do about it. The command line prints it as one line and the
server turns it into a status code; neither shows a traceback for these.
"""


class HandMeshError(Exception):
    """Root of all errors that handmesh raises on purpose."""


class AssetError(HandMeshError):
    """A hand model file is missing, damaged, hostile or not what it claims to be."""


class ImageError(HandMeshError):
    """Bytes or an array that cannot be read as a photograph."""


class ImageTooLargeError(ImageError):
    """A photograph with more bytes or pixels than the limit in force."""


class ImageFormatError(ImageError):
    """Bytes that are no JPEG, PNG, WebP, GIF, BMP, TIFF or HEIC image."""


class ConfigError(HandMeshError):
    """A setting that does not exist, has the wrong type or contradicts another."""


class DataError(HandMeshError):
    """A data set, label or prediction file that is missing, damaged or inconsistent."""


class OtherRunError(DataError):
    """Results of another clip, model, version or setting, where a run was to be gone on with."""


class CheckpointError(HandMeshError):
    """Model weights that are missing, damaged or made for another network or hand."""


class ExportError(HandMeshError):
    """An output or exported model that cannot be written, or that disagrees with the original."""


class MissingPackageError(HandMeshError):
    """A package that is not installed, of those that only an extra of handmesh brings."""
