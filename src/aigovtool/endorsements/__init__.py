"""
What vendors say of platforms, brought to where it is needed: the only code that visits them.

Three layers, each of which knows only the one below:

- `fetch`, `patience`   one answer from one address: bounded, paced, retried
- `library`, `cache`    one answer kept for as long as it is fresh, and renewed before it is not
- `intel`, `amd`, `nvidia`, `collector`   which answers a piece of evidence needs

Nothing here judges. What is fetched is held to its shape alone; `attestation` proves it later by
the vendor's signature, so a vendor's mirror, a PCCS or a thief of the cache can withhold, and no
more. `bundle` packs evidence and endorsements into one file for those without a network.
"""
