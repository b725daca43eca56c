"""Built-in subjects; `verify.subjects.builtins` names them, the other modules are loaded inside ranks."""
