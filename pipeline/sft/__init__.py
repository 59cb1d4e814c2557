"""Supervised fine-tuning with a loss for the thought and a loss for the answer."""
