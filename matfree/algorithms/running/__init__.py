"""What every run shares: counting, plans, checkpoints, the sampling loop, callbacks."""
