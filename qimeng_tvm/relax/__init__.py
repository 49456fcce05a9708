"""Whole models: reading them, and the fused functions that they are made of.

TVM and the front ends' own packages are imported where they are needed.
"""
