"""Hands in moving pictures: followed, smoothed, logged, shown live."""
