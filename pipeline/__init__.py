"""From a question to a reasoned answer. The rooms stand in the order in which the data flows.

question -> prompt -> rollout -> reward -> advantage -> update -> checkpoint -> search -> metric

records, tags, prompts, answers   what travels, where a thought ends, how text is judged
calculator                        sums written in a text, and what they come to
sandbox, verify                   programs run where they can do no harm; is an answer right
data                              problems by name, made-up problems, traces for SFT
model                             reasoning tokens, the value head, one checkpoint folder
rollout                           prompts -> completions with log-probabilities and values
reward                            pure functions of text, weighted by a rubric
train                             SFT with a two-part loss, PPO on TRL's GRPOTrainer
search                            strategies that spend tokens at inference
"""
