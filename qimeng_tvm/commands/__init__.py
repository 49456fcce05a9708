"""The sub-commands of ``qimeng``: each parses, calls the API and prints."""
