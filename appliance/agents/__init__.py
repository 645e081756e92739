"""Wiring: one short module per agent."""
