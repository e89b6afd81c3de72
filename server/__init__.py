"""What a coordinator runs."""
