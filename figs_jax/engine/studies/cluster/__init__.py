"""Training steps on clusters: how models are spread, memory, time."""
