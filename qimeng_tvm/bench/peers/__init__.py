"""The shipped peers, one library a file."""
