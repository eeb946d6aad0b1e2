"""Running a trained network, on whatever this machine has, and writing it for others."""
