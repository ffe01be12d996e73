"""
AWS Nitro Enclaves: what a document says (`layout`), whether it is genuine (`verify`), whether it
will do (`policy`).
"""
