"""
What each side can prove with the papers it holds, offline and years later (I6).

Papers in, findings out: receipts that a consumer kept, statements that a custodian signed. Whose
keys count is said by whoever checks, never by what is checked.
"""
