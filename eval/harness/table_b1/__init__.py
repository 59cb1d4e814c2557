"""The tasks of the paper's Table B1, and GPQA, in lm-evaluation-harness on local data.

python -m eval.harness.table_b1 --checkpoint runs/nano/ppo --data_root DIR --output_dir out
"""
