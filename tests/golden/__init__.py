"""Oracle outputs of the family, the tiny checkpoints they belong to, and an independent reference implementation."""
