"""The engine: campaigns that draw, run, judge, minimise and count, until their budget ends."""
