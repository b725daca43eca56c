"""Peers: what checks in the style of today's test suites catch of the fault catalogue."""
