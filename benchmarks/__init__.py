"""Benchmarks: what this suite is compared with, and what it costs; nothing here is part of the package."""
