"""What the machine gives: processors, memory, folders, files written whole, compiled kernels."""
