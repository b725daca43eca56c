"""Diagnosis: whether the reports on subjects apart name the right stage and cause."""
