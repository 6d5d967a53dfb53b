"""How a broken law is reported: by the first request that breaks it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frontier.errors import InvariantError


def no_request(
    bad: NDArray[np.bool_],
    message: str,
    request: NDArray[np.generic] | None = None,
    **facts: NDArray[np.generic],
) -> None:
    """Stop where the law does not hold for some request.

    Args:
        bad: where it does not, one entry per row of a table.
        message: what is wrong, after "request <number> ".
        request: which request each row is about; by default row i is about request i.
        facts: columns to show of the first such row.

    Raises:
        InvariantError: some entry of `bad` is true.
    """
    if not bad.any():
        return
    where = np.flatnonzero(bad)
    index = int(where[0])
    shown = ", ".join(f"{name} {column[index]}" for name, column in facts.items())
    number = index if request is None else int(request[index])
    more = f"; {len(where)} in all" if len(where) > 1 else ""
    raise InvariantError(f"request {number} {message}" + (f" ({shown})" if shown else "") + more)
