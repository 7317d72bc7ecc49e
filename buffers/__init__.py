"""Expert trajectories: training and storing them."""
