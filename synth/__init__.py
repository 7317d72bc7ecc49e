"""Synthesizers: one paper a file."""
