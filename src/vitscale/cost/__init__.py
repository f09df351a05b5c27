"""Closed forms: parameters, FLOP, bytes per rank, bytes per collective, step time. Pure functions."""
