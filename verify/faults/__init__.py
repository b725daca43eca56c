"""The fault catalogue: deliberately broken subjects, each with a card, and right ones that must be acquitted.

A family is two files: the subjects (`weighting.py`, loaded by the ranks) and their cards (`weighting.toml`,
data that the parent reads without torch).
"""
