"""What this machine and this installation are, and whether they can search."""
