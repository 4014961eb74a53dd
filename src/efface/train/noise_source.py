"""Where the noise of differential privacy comes from.

`torch.Generator().manual_seed(s)` on a CPU uses the lowest 32 bits of s, so whoever knows the settings could try all 4e9
streams. Here 256 secret bits, stretched by SHAKE-256, fill the generator's whole state (MT19937, 19,937 bits).
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Literal

import torch

from efface.run.keys import keyed_digest

NoiseSource = Literal["key", "system", "seed"]
"""A secret key of this installation (can be repeated here), fresh randomness, or a bare seed that whoever reads it can repeat."""

WORDS, HEADER = 624, 24
"""Words of MT19937's state, 32 bits each. torch keeps each in 8 bytes, after a header: seed, words left, a flag, a place."""


def filled(material: bytes) -> torch.Generator:
    """A CPU generator whose whole state comes from some bytes; the same bytes give the same stream.

    Args:
        material: 32 bytes or more of key.
    """
    if len(material) < 32:
        raise ValueError(f"{len(material)} bytes of key: 32 or more")
    generator = torch.Generator()
    generator.manual_seed(0)
    state = generator.get_state()
    stretched = hashlib.shake_256(b"efface noise" + material).digest(4 * WORDS)
    words = torch.frombuffer(bytearray(stretched), dtype=torch.int32).long() & 0xFFFFFFFF
    body = words.contiguous().view(torch.uint8)
    state[HEADER : HEADER + len(body)] = body
    generator.set_state(state)
    return generator


def noise_generator(source: Literal["key", "system"], what: Any) -> torch.Generator:
    """The generator of a run that is to be private.

    Args:
        source: see `NoiseSource`; a bare seed needs no function.
        what: a JSON value in which two runs differ that must not share their noise, which would cancel between them.
    """
    if source == "system":
        return filled(secrets.token_bytes(32))
    return filled(bytes.fromhex(keyed_digest(what, "noise").rpartition(":")[2]))


__all__ = ["NoiseSource", "filled", "noise_generator"]
