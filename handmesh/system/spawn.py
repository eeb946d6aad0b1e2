"""Fresh processes ("spawn") import the script that starts them, and run again what it does not keep under its guard.

multiprocessing refuses that in the new process, where nobody looks, while the one that started it waits for ever to
hand over its work. `check_main_guard` finds out beforehand, with one process that has nothing to do.
"""

from __future__ import annotations

import multiprocessing
from functools import cache

from handmesh.errors import ConfigError

_RAN_AGAIN = 71  # exit code of a process that would have done its parent's work over


def end_if_imported() -> None:
    """End a process that runs its parent's script while it only was to import it: the parent says why."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing's own check asks
        raise SystemExit(_RAN_AGAIN)


@cache
def check_main_guard() -> None:
    """To be called before processes are spawned, once for all. Raises ConfigError where they would not come up."""
    end_if_imported()
    process = multiprocessing.get_context("spawn").Process(target=_nothing, daemon=True)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    if code == _RAN_AGAIN:
        raise ConfigError(
            "This script starts processes, each of which would run the script again: put what it does under "
            'if __name__ == "__main__":'
        )
    if code != 0:
        raise ConfigError(
            f"A process that was started ended with exit code {code} before it did anything (what it said is above). "
            'Where that is the script, run again: put what it does under if __name__ == "__main__":'
        )


def _nothing() -> None:
    pass
