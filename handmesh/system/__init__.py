"""What the machine gives: CPUs, memory, folders, files written whole, compiled kernels."""
