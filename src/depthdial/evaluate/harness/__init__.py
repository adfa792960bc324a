"""Tasks of EleutherAI's lm-evaluation-harness, run by our engine at the budgets of a plug-in, beside its baselines."""
