"""How the licence-free hand that ships with handmesh is made: `python -m handmesh.builtin_hand`. Nothing here runs in use."""
