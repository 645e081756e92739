"""Devices, catalog, pools, backup, restore, verify, scan. Knows nothing of agents."""

READER = "appliance.storage.gatherer"
"""The module that a second process runs for a backup. It is named here, where nothing has to be imported for it."""
