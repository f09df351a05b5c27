"""One study: the grid of runs, the plan, and its execution."""
