"""Starting processes: one file per launcher, each builds argv lists and watches what it started."""
