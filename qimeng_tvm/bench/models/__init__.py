"""Whole models: real model code with seeded random weights, what is exported of them, and how they are timed."""
