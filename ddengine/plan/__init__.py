"""What a run will take: time, memory, disk."""
