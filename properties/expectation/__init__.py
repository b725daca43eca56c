"""Expectation: what the reference says of a case, tensor by tensor, with its bounds."""
