"""The pytest plugin: a subject's campaign as items of a user's test run."""
