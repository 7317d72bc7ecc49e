"""The synthetic set: what is stored, how it is decoded, what it starts from, how it is labelled."""
