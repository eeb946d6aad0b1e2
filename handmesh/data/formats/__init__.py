"""Data sets on disk, one module each."""
