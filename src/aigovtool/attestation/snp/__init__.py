"""
AMD SEV-SNP: what a report says (`layout`), whether it is genuine (`verify`), whether it will do
(`policy`).
"""
