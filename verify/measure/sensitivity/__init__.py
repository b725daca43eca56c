"""Sensitivity: how small an error of a right subject is caught, by quantity, dtype and size."""
