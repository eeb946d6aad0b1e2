"""How the licence-free hand that ships with handmesh is made: `python -m handmesh.builtin_hand`.

Nothing here runs in use. It draws and writes files, so it stands above the folders that it uses.
"""
