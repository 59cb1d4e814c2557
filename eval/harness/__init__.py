"""Run lm-evaluation-harness on a checkpoint folder, offline, and compare it with eval.run.

python -m eval.harness --checkpoint runs/nano/ppo --suites gsm8k --data_root DIR --output_dir out
python -m eval.harness.agreement --ours runs/nano/eval/gsm8k --theirs out/gsm8k

Its task files are generated from eval.suites: task.yaml is the template, scoring.py extracts the
visible answer of a completion and grades it. Install the harness with
`pip install -e '.[harness]' -c constraints.txt`.
"""
