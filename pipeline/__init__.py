"""The library: from a question to a reasoned answer. docs/layout.md describes its packages.

question -> prompt -> rollout -> reward -> advantage -> update -> checkpoint -> search -> metric
"""
