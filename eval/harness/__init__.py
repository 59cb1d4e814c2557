"""lm-evaluation-harness on a checkpoint folder, offline, and whether it agrees with eval.run.

python -m eval.harness --checkpoint runs/nano/ppo --suites gsm8k --data_root DIR --output_dir out
python -m eval.harness.agreement --ours runs/nano/eval/gsm8k --theirs out/gsm8k

Its task files are made from the suites of eval.suites: task.yaml is their form, scoring.py takes the
visible answer out of a completion and judges it. The harness comes with the extra of its name:
`pip install -e '.[harness]' -c constraints.txt`.
"""
