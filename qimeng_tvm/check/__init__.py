"""The checks: worker process, guarded buffers, numbers, instruction audit, timing sanity."""
