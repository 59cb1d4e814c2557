"""Reasoning tags, prompts and chat templates."""
