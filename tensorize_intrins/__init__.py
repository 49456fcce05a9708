"""Tensorize intrinsic families: one folder an instruction set, one family a file."""
