"""Clips as jobs: work that outlives its request, its worker and a restart of the service.

A job is a folder (store.py) and the only truth about it; the queue (queue.py) holds names of folders in their order and
wakes who waits; a runner (runner.py) in each service takes one after the other and has a process of its own (clip.py)
for each, which can crash, hang or be cancelled without anybody else noticing; routes.py is the HTTP side.
"""
