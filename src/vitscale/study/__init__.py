"""One study: the grid of its runs, the plan with what each costs, and its execution."""
