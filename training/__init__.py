"""The training loop, losses, validation."""
