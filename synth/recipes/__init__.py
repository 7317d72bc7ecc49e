"""The recipes of every method, one file a method, found by `synth.catalogue`.

A file has `recipes()`, which returns its recipes, and `BIBTEX`, the entries of the works that they
cite. What several methods share lies in files without `recipes()`.
"""
