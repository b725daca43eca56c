"""Values: every element of every tensor of a case, as a pure function of its choices."""
