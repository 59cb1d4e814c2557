"""Memory and time of a training run, computed from its configuration without loading weights."""
