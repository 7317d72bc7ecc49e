"""What is shipped and kept: the folder of a set and of a run, and files of other programs."""
