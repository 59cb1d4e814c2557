"""Rejection sampling fine-tuning: train on the policy's own right completions."""
