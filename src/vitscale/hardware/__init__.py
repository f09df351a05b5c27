"""What it runs on, as data: the device catalog, the topology, the probe of this machine."""
