"""What runs inside a rank: one message from the parent, its work, one answer."""
