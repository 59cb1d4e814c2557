"""From a question to a reasoned answer; `docs/layout.md` describes the packages.

question -> prompt -> rollout -> reward -> advantage -> update -> checkpoint -> search -> metric
"""
