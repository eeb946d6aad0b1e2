import pickle

import numpy as np

from handmesh.synth.shade import Appearance
from handmesh.system.kernels import kernel


def test_without_a_place_for_machine_code_it_is_compiled_anew():
    """A read-only container without a home must still draw: numba cannot cache a function of no file."""
    namespace: dict[str, object] = {}
    exec(compile("def fill(values, number):\n    values[:] = number\n", "<no file>", "exec"), namespace)
    values = np.zeros(3)
    kernel()(namespace["fill"])(values, 2.0)  # type: ignore[arg-type]
    assert (values == 2).all()


def test_machine_code_that_a_former_version_cached_does_not_end_in_a_traceback():
    """numba unpickles an index of other sources, with the types that kernels were called with, before it drops it."""
    assert pickle.loads(b"chandmesh.synth.shade\nLook\n.") is Appearance
