"""The HTTP service: a photograph is posted, hands come back as JSON, GLB, NPZ or an overlay.

    from handmesh_server.app import create_app          # an ASGI application, for any server that runs those
    from handmesh_server.run import serve               # our way to run it: workers, limits, drain, logs
    python -m handmesh_server                           # the same, all settings from HANDMESH_... variables

A supervisor accepts connections and hands them to workers (supervisor.py, worker.py). There a request goes through:
limits on bytes and time (server.py, input.py) -> a place in the queue (admission.py) -> when its turn has come, a
thread (lanes.py) that probes the header, decodes, crops and encodes (service.py, answers.py), beside others on a CPU,
with crops of all of them in one batch on a GPU (batching.py).
docs/how_to/serving.md is the manual.
"""
