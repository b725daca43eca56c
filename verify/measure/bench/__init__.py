"""The command `bench`: how fast the suite is, as ratios measured in one run, each beside its target."""
