"""Hands in moving pictures.

`track` follows hands from picture to picture, `smoothing` steadies them, and `follow` is both. `clip` turns a video
into files (`log` is the one of them that everything else is made of), `live` and `window` show a camera.
"""
