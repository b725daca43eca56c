"""Measures of the suite itself: its power, its sensitivity, its speed. It may import everything."""
