"""Stages of training: SFT with a two-part loss, PPO with a value head; both on TRL's trainers."""
