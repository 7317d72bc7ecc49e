"""What distilled sets are used for: memories of class-incremental learning, questions of privacy."""
