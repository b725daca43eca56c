"""What is right: batch norm over all ranks in float64, and how far rounding may carry a right subject.

Imports jax and numpy, and neither torch nor anything else of this project.
"""
