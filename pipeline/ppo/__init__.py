"""PPO with a value head: pure functions and small classes, and the TRL trainer that uses them."""
