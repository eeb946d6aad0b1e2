"""The HTTP service: a photograph is posted, hands come back as JSON, GLB, NPZ or an overlay.

    from handmesh_server.app import create_app          # an ASGI application, for any server that runs those
    from handmesh_server.run import serve               # our way to run it: limits, drain, logs
    python -m handmesh_server                           # the same, all settings from HANDMESH_... variables

A request goes through: limits on bytes and time (server.py, input.py) -> header probe, decode and crop in a thread of
its own (service.py) -> one queue of crops, greedily batched by one model thread (batching.py) -> encode (answers.py).
docs/how_to/serving.md is the manual.
"""
