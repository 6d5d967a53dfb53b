"""Laws of hand-overs between clusters."""

from __future__ import annotations

import numpy as np

from frontier.errors import InvariantError
from frontier.results.columns import FINISHED, NEVER, TRANSFER_CAUSES, Columns
from frontier.results.violations import no_request


def check_transfers(columns: Columns) -> None:
    """Check that KV moves between clusters, in order of time, before the tokens that rest on it are made.

    Who prefills for others finishes nothing, so that a finished request of such a cluster has a hand-over. A
    transfer that was given up has no end; of several transfers of a request that was started more than once
    the last with an end is the one that counts.
    """
    transfers, requests, end_ns = columns.transfers, columns.requests, columns.totals["end_ns"]
    request, source, destination = (transfers[name] for name in ("request", "source", "destination"))
    if bool((request >= len(requests["status"])).any()):
        raise InvariantError(f"transfers names request {request.max()} of {len(requests['status'])}")
    for name, engine in (("source", source), ("destination", destination)):
        unknown = engine >= columns.totals["replicas"]
        no_request(unknown, f"has a transfer whose {name} does not exist", request, **{name: engine})
    cluster = columns.cluster_of_engine
    within = cluster[source] == cluster[destination]
    ends = {"source": source, "destination": destination}
    no_request(within, "has a transfer within a cluster", request, **ends)
    ready, start, end = (transfers[f"{name}_ns"] for name in ("ready", "start", "end"))
    stamps = {"ready_ns": ready, "start_ns": start, "end_ns": end}
    # KV that moves while its prompt is computed starts before it is ready, yet ends after that.
    arrival = requests["arrival_ns"][request]
    for early, late in ((start, end), (ready, end)):
        out = (late != NEVER) & ((early == NEVER) | (late < early))
        no_request(out, "has a transfer with time stamps out of order", request, **stamps)
    for stamp in (ready, start, end):
        out = (stamp != NEVER) & (stamp < arrival)
        no_request(out, "has a transfer before it arrived", request, **stamps)
        no_request(stamp > end_ns, "has a transfer after the end of the run", request, **stamps)
    done = requests["status"][request] == FINISHED
    once = requests["attempts"][request] == 1
    no_request(done & once & (end == NEVER), "finished without the end of its transfer", request, **stamps)
    early = done & (requests["first_token_ns"][request] < end)
    no_request(early, "has its first token before its KV was there", request, **stamps)
    _check_path(columns)


def _check_path(columns: Columns) -> None:
    """Check that each hand-over goes on where the one before ended, the last one where tokens are made.

    Hand-overs of a request that was started more than once may be those of earlier attempts; one counts only
    if time was spent on it in the last attempt.
    """
    transfers, requests = columns.transfers, columns.requests
    waited, moved = (requests[f"e2e_{cause}_ns"] for cause in TRANSFER_CAUSES)
    rests = (requests["attempts"] == 1) | (waited + moved > 0)
    ended = transfers["end_ns"] != NEVER
    transfers = {name: column[ended] for name, column in transfers.items()}
    order = np.argsort(transfers["request"], kind="stable")
    request, source, destination = (transfers[name][order] for name in ("request", "source", "destination"))
    last = np.append(request[1:] != request[:-1], True)[: len(request)]
    goes_on = np.where(last, requests["replica"][request], np.append(source[1:], 0)[: len(request)])
    done = (requests["status"][request] == FINISHED) & rests[request]
    done &= last | (requests["attempts"][request] == 1)
    no_request(
        done & (destination != goes_on),
        "goes on elsewhere than where its KV went",
        request,
        destination=destination,
        replica=goes_on,
    )
    handed = np.zeros(len(requests["status"]), np.bool_)
    handed[request] = True
    finished = (requests["status"] == FINISHED) & ~handed
    cluster = columns.cluster_of_engine
    hands_over = np.isin(cluster, cluster[source])
    stayed = finished.copy()
    stayed[finished] = hands_over[requests["replica"][finished]]
    no_request(
        stayed,
        "finished on a cluster that hands over, without a transfer",
        replica=requests["replica"],
    )
    no_request(finished & (waited + moved != 0), "spent time on a transfer that it had not", time_ns=moved)
