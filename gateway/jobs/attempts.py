"""Attempts of a job and the numbers of its events.

An attempt is (epoch, try): the epoch rises with each new owner of the job, the try with
each new run by the same owner. Its ordinal orders all attempts of a job, and
``seq = ordinal * 2**32 + n`` orders all its events, so that any gateway can resume a
stream after a seq. Inside an attempt:

========================  ======================================================
n                         event
========================  ======================================================
0                         RESTARTED; the first attempt has none
1 to 2**31 - 1            as the node numbered it
2**31 + i                 piece i of a replay from the artifact (0: RESTARTED)
2**32 - 1                 the terminal event, rebuilt from the record by anyone
========================  ======================================================
"""

from __future__ import annotations

from typing import Final

TRIES_PER_EPOCH: Final = 1 << 10
MAX_EPOCH: Final = (1 << 22) - 1
FIRST_ATTEMPT: Final = 1

_N_BITS: Final = 32
REPLAY_N: Final = 1 << 31
TERMINAL_N: Final = (1 << 32) - 1


def ordinal_of(epoch: int, try_: int) -> int:
    """The attempt's place among all attempts of its job.

    Raises:
        ValueError: Epoch or try is out of range; both start at 1.
    """
    if not 1 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch {epoch} is not in 1..{MAX_EPOCH}")
    if not 1 <= try_ < TRIES_PER_EPOCH:
        raise ValueError(f"try {try_} is not in 1..{TRIES_PER_EPOCH - 1}")
    return (epoch - 1) * TRIES_PER_EPOCH + try_


def attempt_of(ordinal: int) -> tuple[int, int]:
    """(epoch, try) of an ordinal."""
    return ordinal // TRIES_PER_EPOCH + 1, ordinal % TRIES_PER_EPOCH


def seq_of(ordinal: int, n: int) -> int:
    """The seq of event ``n`` of an attempt; ordinal 0 is a job that no node has run."""
    return (ordinal << _N_BITS) | n


def split_seq(seq: int) -> tuple[int, int]:
    """(ordinal, n) of a seq."""
    return seq >> _N_BITS, seq & TERMINAL_N
