"""Speed, memory and learning of this project and of reference implementations on the same work.

__main__           the command: runs a benchmark, prints a table, writes JSON
implementations    options, and the implementations that each benchmark compares
runner             starts one process per implementation, alternates them, summarises reports
measure            inside such a process: time, memory, profile
shapes             models, prompts and answers
ours, reference    the measured code of this project, and of TRL, transformers and math-verify
kill_test          `python -m eval.bench.kill_test`: kill and resume training, compare the results
gradient_signal    `python -m eval.bench signal`: noise of policy gradients, by advantage estimator;
                   with signal_options, estimators, policy_gradients, signal_figures
shared_eval        `python -m eval.bench shared_eval`: an evaluation on one process and on several;
                   with evaluating, one of those processes
verdict_stability  `python -m eval.bench stability`: verdicts on an idle and on a busy machine
"""
