"""What runs together, and on which pods."""
