"""What all algorithms share: counted operators, budgets, the sampling loop, checkpoints."""
