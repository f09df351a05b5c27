"""One study: the grid of runs, the plan, and its execution.

plan.json is {"schema_version": 1, "runs": [{"run_id", "series", "spec", "estimate"}], "skipped": [{"label", "reason"}], "notes": [...]}.
"""
