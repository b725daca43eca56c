"""Subjects apart: faulty synchronized batch norms as people write them, which no cause was made for."""
