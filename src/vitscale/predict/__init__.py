"""What comes next: step time, throughput and efficiency at world sizes that were not measured, with intervals."""
