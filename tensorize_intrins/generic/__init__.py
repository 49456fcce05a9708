"""Intrinsics for any CPU: LLVM picks the instructions."""
