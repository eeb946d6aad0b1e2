"""`python -m handmesh` and the `handmesh` command."""

from __future__ import annotations


def main() -> None:
    from handmesh.cli import run

    run()


if __name__ == "__main__":
    main()
