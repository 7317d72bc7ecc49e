"""What distilled sets are good for: continual learning, and what they give away."""
