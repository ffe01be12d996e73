"""
A software DCAP platform: quotes in the real TDX format, under a root made on this machine.

It protects nothing from the owner of the machine, who holds the root. It exists so that everything
else runs as on real hardware, without a switch that turns a check off.
"""
