"""Rehearsals of disasters with real processes, and a judge of what they show."""
