"""Networks made from other networks: unreparameterized, grown, measured."""
