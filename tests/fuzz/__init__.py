"""Feeds mutated files to all that reads files: `python -m tests.fuzz`."""
