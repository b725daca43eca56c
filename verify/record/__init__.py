"""Records: what happened, appended as it happens, and read back so that a run can go on."""
