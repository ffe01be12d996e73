"""Azure confidential VMs: a hardware report for the paravisor, whose vTPM speaks for the guest."""
