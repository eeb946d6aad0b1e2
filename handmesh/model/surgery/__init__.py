"""Networks made from other networks: unfolded, grown, measured."""
