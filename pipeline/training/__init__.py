"""What every long training run needs: checkpoints, resume, signals, logs, optimizers."""
