"""The network, and its weights on disk."""
