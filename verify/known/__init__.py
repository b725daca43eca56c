"""Known discrepancies: what a subject's author has declared, and what exactly that excuses."""
