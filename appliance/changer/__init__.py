"""Slot map, virtual drives and the Changer Command. Knows nothing of LUKS."""
