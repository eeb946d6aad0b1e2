"""`python -m handmesh.builtin_hand`."""

from handmesh.builtin_hand.generate import main

raise SystemExit(main())
