"""The figures of the command `bench`, one a file."""
