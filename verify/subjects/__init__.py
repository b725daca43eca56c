"""Built-in subjects; `verify.subjects.catalogue` names them, the other modules are loaded inside ranks."""
