"""What the machine gives: processors, memory and folders."""
