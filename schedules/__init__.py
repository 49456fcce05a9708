"""Schedule rules: one folder a kind of machine, one rule a file."""
