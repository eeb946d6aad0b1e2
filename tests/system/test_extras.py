"""A package that is missing is named, with what wanted it and the command that installs it."""

import sys

import pytest

from handmesh.errors import MissingPackageError
from handmesh.system.extras import extra


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError) as raised, extra("train", "`handmesh train`"):
        import torch.nn  # noqa: F401
    assert str(raised.value) == ('`handmesh train` needs torch, which is not installed: pip install "handmesh[train]"')


def test_a_module_of_ours_that_is_missing_is_our_slip():
    with pytest.raises(ModuleNotFoundError), extra("train", "`handmesh train`"):
        import handmesh.no_such_module  # noqa: F401
