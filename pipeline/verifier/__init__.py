"""Training of the verifier: a small network that estimates whether a solution will be correct."""
