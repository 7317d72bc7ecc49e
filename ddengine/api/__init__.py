"""What everybody calls, from Python and from the command line: one module a theme.

The names are exported by `ddengine` itself; see there.
"""
