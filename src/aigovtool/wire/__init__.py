"""Every message between processes: strict, bounded, and the only thing the three roles share."""
