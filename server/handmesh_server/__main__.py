"""`python -m handmesh_server`: serve with the settings of the HANDMESH_... variables. For containers."""

from __future__ import annotations

import sys

from handmesh.errors import HandMeshError


def main() -> None:
    from handmesh_server.run import serve
    from handmesh_server.settings import Settings

    try:
        serve(Settings.from_environment())
    except HandMeshError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
