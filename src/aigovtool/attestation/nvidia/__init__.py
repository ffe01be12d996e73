"""NVIDIA GPUs and switches: SPDM reports, device chains, RIMs (extra ``nvidia``) and OCSP."""
