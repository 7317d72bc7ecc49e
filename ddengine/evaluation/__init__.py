"""What a set is worth: networks trained on it and on its baselines by one protocol."""
