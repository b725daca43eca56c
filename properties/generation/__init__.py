"""Generation: cases for Hypothesis, drawn from bytes inside a domain, and whether a case lies in one."""
