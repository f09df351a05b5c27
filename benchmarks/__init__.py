"""The figures of the project, each with its command, its target and whether it was met."""
