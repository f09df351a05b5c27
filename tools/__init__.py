"""Generators of the files that are made from code."""
