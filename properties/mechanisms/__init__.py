"""Mechanisms: how a subject is known to depart from a right one, and what it then gives, within what bound.

A known discrepancy names a mechanism of this closed list. It excuses what the mechanism predicts of the
arithmetic that was done, in the steps and channels in which it acts, with all that follows from it in later
steps of the same case; an observed value that it does not predict is a violation like any other.
"""
