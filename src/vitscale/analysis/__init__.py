"""What it means: scaling, the split of a step, findings. No torch, no drawing."""
