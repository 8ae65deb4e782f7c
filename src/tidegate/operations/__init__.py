"""What people do with flags, and ask about an installation, beside the rollouts."""
