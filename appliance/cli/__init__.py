"""The magbay command: one module per noun; parsing and printing only."""
