"""Diagnosis: what failing trials resemble, by known causes and by what a minimal case still needs."""
