"""Packages that only an extra of handmesh installs: what is said where one is missing.

Using a model needs none of them. Training, exporting and running networks in torch need `handmesh[train]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from handmesh.errors import MissingPackageError


@contextmanager
def extra(name: str, wanted_by: str) -> Iterator[None]:
    """Around an import: where the package is missing, one line that says who wanted it and how to install it.

    with extra("train", "the torch engine"):
        import torch
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "handmesh", "handmesh_server"):  # a slip of ours, not a package to install
            raise
        raise missing(package, name, wanted_by) from error


def missing(package: str, name: str, wanted_by: str) -> MissingPackageError:
    """The error to raise where a package of the extra `name` is not installed."""
    return MissingPackageError(f"{wanted_by} needs {package}, which is not installed: {install_command(name)}")


def install_command(name: str) -> str:
    """What installs an extra: where handmesh runs from its source tree, from there, as the README does."""
    from_source = (Path(__file__).resolve().parents[2] / "pyproject.toml").is_file()
    return f'pip install -e ".[{name}]"' if from_source else f'pip install "handmesh[{name}]"'
