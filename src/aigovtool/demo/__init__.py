"""The whole story on one machine: real processes on loopback, and a small real model."""
