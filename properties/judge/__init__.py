"""The judge: every property as a pure function of a case, what was observed and what is expected."""
