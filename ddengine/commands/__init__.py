"""The command line: each command is its options and one call."""
