"""What a process and its files need: errors, random numbers, files, what is said, devices."""
