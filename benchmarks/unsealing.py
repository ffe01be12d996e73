"""
Unsealing and sealing against pyrage (age) and Tink's streaming AEAD: same data, same run.

    python -m benchmarks.unsealing [--size-mib 256] [--rounds 7] [--json]

The task is the enclave's: a file of ciphertext (in the page cache) becomes the whole plaintext in
fresh memory. Contestants take turns in every round, so that whatever else the machine does hits all
alike; the median of the rounds counts, and the best round is shown beside it. Each of the others is
measured in more than one use:

- ``pyrage.decrypt``       bytes in, bytes out, as its README does
- ``pyrage.decrypt_io``    file in, `io.BytesIO` out
- ``tink.read``            the decrypting stream's ``read()``
- ``tink.blocks``          ``read(1 MiB)``, as in Tink's documentation, into an `io.BytesIO`
- ``tink.bytearray``       the same into a bytearray of the right size, made beforehand
- ``tink.huge_pages``      the same into *our* huge pages

The first four are what their documentation shows, and the target is held against the fastest of
those; the last two are Tink tuned by hand, shown so that nobody has to guess.
``aigovtool.confirmed`` adds the hash of the plaintext, which neither of the others computes, and
which the enclave computes beside the loading of the model.

Needs ``pyrage`` and ``tink``, which nothing else in the project needs.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyrage
import tink
from tink import streaming_aead

from aigovtool.crypto.signing import SigningKey
from aigovtool.sealing.manifest import ModelSignature
from aigovtool.sealing.memory import anonymous_memory
from aigovtool.sealing.seal import ModelDescription, SourceFile, new_content_key, seal
from aigovtool.sealing.unseal import UnsealedModel, unseal_into

MIB = 1 << 20
TARGET = 4.0  # times the faster of the others
DOCUMENTED = ("pyrage.decrypt", "pyrage.decrypt_io", "tink.read", "tink.blocks")


class Ours:
    """The product's own functions, as the custodian and the enclave call them."""

    def __init__(self, folder: Path, source: Path) -> None:
        self._out = folder / "aigovtool"
        self._source = source
        self._content_key = new_content_key()
        self._custodian = SigningKey.generate()

    def seal(self) -> None:
        self._verified = seal(
            [SourceFile(name="model.gguf", path=self._source)],
            self._out,
            description=ModelDescription(
                name="benchmark",
                version="1",
                format="gguf",
                entry="model.gguf",
                signature=ModelSignature(),
            ),
            content_key=self._content_key,
            signing_key=self._custodian,
            created=datetime.now(UTC),
        )

    def unseal(self) -> memoryview:
        return self._unseal().entry

    def unseal_confirmed(self) -> memoryview:
        model = self._unseal()
        model.confirm()
        return model.entry

    def _unseal(self) -> UnsealedModel:
        with self._out.open("rb", buffering=0) as body:
            return unseal_into(body, self._verified, self._content_key)


class Age:
    """age by pyrage: X25519 recipient, ChaCha20-Poly1305 in chunks of 64 KiB."""

    def __init__(self, folder: Path, source: Path) -> None:
        self._out = folder / "age"
        self._source = source
        self._identity = pyrage.x25519.Identity.generate()

    def seal(self) -> None:
        with self._source.open("rb") as source, self._out.open("wb") as out:
            pyrage.encrypt_io(source, out, [self._identity.to_public()])
            _to_disk(out)

    def decrypt(self) -> bytes:
        return pyrage.decrypt(self._out.read_bytes(), [self._identity])

    def decrypt_io(self) -> memoryview:
        plaintext = io.BytesIO()
        with self._out.open("rb") as source:
            pyrage.decrypt_io(source, plaintext, [self._identity])
        return plaintext.getbuffer()


class Tink:
    """Tink's streaming AEAD, AES256_GCM_HKDF_1MB: like ours AES-256-GCM, in segments of 1 MiB."""

    def __init__(self, folder: Path, source: Path) -> None:
        self._out = folder / "tink"
        self._source = source
        streaming_aead.register()
        template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
        self._primitive = tink.new_keyset_handle(template).primitive(streaming_aead.StreamingAead)

    def seal(self) -> None:
        with self._source.open("rb") as source:
            out = self._out.open("wb")
            with self._primitive.new_encrypting_stream(out, b"") as stream:
                while block := source.read(MIB):
                    stream.write(block)
        with self._out.open("rb") as written:
            os.fsync(written.fileno())

    def read(self) -> bytes:
        with self._primitive.new_decrypting_stream(self._out.open("rb"), b"") as stream:
            return bytes(stream.read())

    def blocks(self) -> memoryview:
        plaintext = io.BytesIO()
        with self._primitive.new_decrypting_stream(self._out.open("rb"), b"") as stream:
            while block := stream.read(MIB):
                plaintext.write(block)
        return plaintext.getbuffer()

    def into_bytearray(self) -> memoryview:
        return self._blocks_into(memoryview(bytearray(self._source.stat().st_size)))

    def into_huge_pages(self) -> memoryview:
        return self._blocks_into(anonymous_memory(self._source.stat().st_size))

    def _blocks_into(self, plaintext: memoryview) -> memoryview:
        at = 0
        with self._primitive.new_decrypting_stream(self._out.open("rb"), b"") as stream:
            while block := stream.read(MIB):
                plaintext[at : at + len(block)] = block
                at += len(block)
        return plaintext


def _to_disk(out: io.BufferedWriter) -> None:
    out.flush()
    os.fsync(out.fileno())


def measure(
    contestants: dict[str, Callable[[], Any]], rounds: int, check: Callable[[Any], None]
) -> dict[str, list[float]]:
    """Return the seconds of each contestant in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            gc.collect()
            start = time.perf_counter()
            result = run()
            elapsed = time.perf_counter() - start
            if number:
                seconds[name].append(elapsed)
            else:
                check(result)
            del result
    return seconds


def run(size_mib: int, rounds: int) -> dict[str, Any]:
    """Measure both directions; return speeds in GB/s (10^9 bytes of plaintext) and ratios."""
    with tempfile.TemporaryDirectory(prefix="unsealing-") as name:
        folder = Path(name)
        source = folder / "model"
        with source.open("wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(MIB))
        ours, age, google = (kind(folder, source) for kind in (Ours, Age, Tink))
        sealing = measure(
            {"aigovtool": ours.seal, "pyrage.encrypt_io": age.seal, "tink.write": google.seal},
            rounds,
            lambda _: None,
        )
        plaintext = source.read_bytes()

        def check(result: Any) -> None:
            if result != plaintext:
                raise SystemExit("a contestant did not give the plaintext back")

        unsealing = measure(
            {
                "aigovtool": ours.unseal,
                "pyrage.decrypt": age.decrypt,
                "pyrage.decrypt_io": age.decrypt_io,
                "tink.read": google.read,
                "tink.blocks": google.blocks,
                "tink.bytearray": google.into_bytearray,
                "tink.huge_pages": google.into_huge_pages,
                "aigovtool.confirmed": ours.unseal_confirmed,
            },
            rounds,
            check,
        )
    measured = {"sealing": sealing, "unsealing": unsealing}
    medians, bests = (
        {
            direction: {name: size_mib * MIB / pick(times) / 1e9 for name, times in each.items()}
            for direction, each in measured.items()
        }
        for pick in (statistics.median, min)
    )
    unseal = medians["unsealing"]
    faster = max(DOCUMENTED, key=lambda name: unseal[name])
    times_the_faster = unseal["aigovtool"] / unseal[faster]
    return {
        "size_mib": size_mib,
        "rounds": rounds,
        "processors": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "median_gb_per_s": medians,
        "best_gb_per_s": bests,
        "unsealing_times": {name: unseal["aigovtool"] / speed for name, speed in unseal.items()},
        "faster_of_them": faster,
        "times_the_faster": times_the_faster,
        "target": TARGET,
        "target_met": times_the_faster >= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = run(arguments.size_mib, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['size_mib']} MiB, {result['rounds']} rounds, {result['processors']} processors")
    for direction, medians in result["median_gb_per_s"].items():
        print(f"\n{direction:<24}{'median GB/s':>12}{'best':>8}{'ours is':>12}")
        for name, speed in medians.items():
            best = result["best_gb_per_s"][direction][name]
            print(f"  {name:<22}{speed:>12.2f}{best:>8.2f}{medians['aigovtool'] / speed:>10.1f} x")
    verdict = "met" if result["target_met"] else "missed"
    print(
        f"\nunsealing is {result['times_the_faster']:.1f} times the faster of them"
        f" ({result['faster_of_them']}); target {TARGET:.0f}: {verdict}"
    )


if __name__ == "__main__":
    main()
