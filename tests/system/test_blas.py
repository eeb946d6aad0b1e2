"""One thread for small matrices, and for as long as anybody has them."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from handmesh.hand import builtin_hand
from handmesh.hand.fit import fit_hand
from handmesh.system.blas import one_blas_thread

POOLS = ThreadpoolController().select(user_api="blas")


def threads() -> set[int]:
    return {pool["num_threads"] for pool in POOLS.info()}


@pytest.fixture
def two_threads():
    if not POOLS.info():
        pytest.skip("this NumPy has no BLAS whose threads can be counted")
    with POOLS.limit(limits=2):
        if threads() != {2}:
            pytest.skip("this NumPy's BLAS has one thread")
        yield


def test_the_last_to_leave_gives_them_back(two_threads):
    first, second = ExitStack(), ExitStack()
    first.enter_context(one_blas_thread())
    second.enter_context(one_blas_thread())
    assert threads() == {1}
    first.close()
    assert threads() == {1}
    second.close()
    assert threads() == {2}
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        1 / 0  # noqa: B018
    assert threads() == {2}


def test_a_fit_has_one(two_threads, monkeypatch):
    seen = []
    solve = np.linalg.solve
    monkeypatch.setattr(np.linalg, "solve", lambda *arguments: (seen.append(threads()), solve(*arguments))[1])
    hand = builtin_hand()
    fit_hand(1000 * hand.shaped().posed(np.tile(np.eye(3), (16, 1, 1))).joints[:, :2])
    assert seen
    assert all(found == {1} for found in seen)
    assert threads() == {2}
