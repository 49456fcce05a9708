"""Systems that run whole models, one a file; ours is among them."""
