"""Key files: made, checked, never shown."""
