"""What is asked: the study file, its resolved runs, the batch identity, DeepSpeed JSON intake."""
