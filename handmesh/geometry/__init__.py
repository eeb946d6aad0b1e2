"""Rotations, cameras and crops. It knows no hand."""
