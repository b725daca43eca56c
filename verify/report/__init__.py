"""Reports: handlers of the one stream of events, one format a module."""
