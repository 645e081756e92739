"""Devices, catalog, pools, backup, restore, verify, scan. Knows nothing of agents."""
