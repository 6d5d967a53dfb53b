"""Conservation laws that every run must obey; one function per law, each a few vector operations.

A violation is a defect of the simulator (or a damaged file), never of the scenario, so it stops everything:
figures from columns that contradict each other are worth nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frontier.errors import InvariantError
from frontier.results.columns import (
    ATTRIBUTION_CAUSES,
    FAILED,
    FINISHED,
    FIRST_FAILURE,
    NEVER,
    NONE_U32,
    REJECT_REASONS,
    REJECTED,
    STATUSES,
    TIMELINE_COUNTERS,
    UNFINISHED,
    Columns,
    Ints,
    client_stamps_ns,
)
from frontier.results.kv_tiers import KvTier
from frontier.results.tokens import CARRIED, TokenRuns
from frontier.results.transfer_checks import check_transfers
from frontier.results.violations import no_request

_NO_LIMIT = int(np.iinfo(np.int64).max)


def check_statuses(columns: Columns) -> None:
    """Check that every request ends one way, or none, with the reason that it takes and stamps in order."""
    requests = columns.requests
    status, reason = requests["status"], requests["reject_reason"]
    no_request(status >= len(STATUSES), "has an unknown status", status=status)
    no_request(reason >= len(REJECT_REASONS), "has an unknown reject reason", reject_reason=reason)
    for ended, known, word in (
        (REJECTED, (reason > 0) & (reason < FIRST_FAILURE), "rejected"),
        (FAILED, reason >= FIRST_FAILURE, "failed"),
    ):
        no_request((status == ended) != known, f"is {word} without a reason, or the reverse", status=status)
    attempts = requests["attempts"]
    no_request(attempts < 1, "was never started", attempts=attempts)
    again = attempts > 1
    stamps = {
        name: requests[name] for name in ("arrival_ns", "scheduled_ns", "first_token_ns", "finished_ns")
    }
    arrival, scheduled, first, finished = stamps.values()
    no_request(arrival < 0, "never arrived", **stamps)
    # A first step may have been planned ahead and never made, when the replica was lost.
    begun = np.where(again & (scheduled > first), first, scheduled)
    for early, late in ((arrival, scheduled), (begun, first), (first, finished)):
        no_request(
            (late != NEVER) & ((early == NEVER) | (late < early)), "has time stamps out of order", **stamps
        )
    no_request((status == FINISHED) != (finished != NEVER), "has a status that its stamps deny", **stamps)
    rejected = (status == REJECTED) & ~again
    no_request(rejected & (scheduled != NEVER), "was rejected and scheduled", **stamps)
    no_request(finished > columns.totals["end_ns"], "finished after the end of the run", **stamps)
    unrouted = requests["replica"] == NONE_U32
    no_request(unrouted & (scheduled != NEVER), "was scheduled on no replica", **stamps)
    beyond = ~unrouted & (requests["replica"] >= columns.totals["replicas"])
    no_request(beyond, "ran on a replica that does not exist", replica=requests["replica"])


def check_attribution(columns: Columns) -> None:
    """Check that the causes of TTFT and of E2E add up, to the nanosecond, for every finished request."""
    requests = columns.requests
    finished = requests["status"] == FINISHED
    for kind, until in zip(("ttft", "e2e"), client_stamps_ns(requests), strict=True):
        total = np.zeros(len(finished), np.int64)
        for cause in ATTRIBUTION_CAUSES:
            part = requests[f"{kind}_{cause}_ns"]
            no_request(finished & (part < 0), f"spent a negative time in {kind} {cause}", time_ns=part)
            total += part
        latency = until - requests["arrival_ns"]
        message = f"has {kind} causes that do not add up to its {kind}"
        no_request(finished & (total != latency), message, causes_ns=total, latency_ns=latency)
    lost, before = requests["e2e_lost_ns"], requests["ttft_lost_ns"]
    whole = (requests["attempts"] == 1) & (requests["status"] != FAILED)
    no_request(whole & (lost != 0), "lost time in its only attempt", lost_ns=lost)
    no_request(finished & (lost != before), "lost time after its first token", lost_ns=lost, ttft_ns=before)


def check_tokens(columns: Columns, max_model_lens: Sequence[int | None]) -> None:
    """Check that finished requests generated what they asked for, or reached the limit of their engine.

    `max_model_lens` are the limits of the clusters, or one for all.
    """
    requests = columns.requests
    asked = requests["output_tokens"].astype(np.int64)
    generated = requests["generated_tokens"].astype(np.int64)
    facts = {"output_tokens": asked, "generated_tokens": generated}
    no_request(generated > asked, "generated more tokens than it asked for", **facts)
    cut_short = (requests["status"] == FINISHED) & (generated < asked)
    lengths = requests["prompt_tokens"].astype(np.int64) + generated
    cut_short &= lengths < _limits(columns, max_model_lens)
    no_request(cut_short, "finished before it generated what it asked for", **facts)
    no_request(
        (requests["status"] == REJECTED) & (generated > 0), "was rejected and generated tokens", **facts
    )


def _limits(columns: Columns, max_model_lens: Sequence[int | None]) -> Ints:
    """Return the longest prompt + output of each request's engine; no limit is the largest integer."""
    of_cluster: Ints = np.array([_NO_LIMIT if each is None else each for each in max_model_lens], np.int64)
    if len(of_cluster) == 1:
        of_cluster = of_cluster.repeat(len(columns.clusters))
    limits: Ints = np.append(of_cluster[columns.cluster_of_engine], _NO_LIMIT)
    of_request: Ints = limits[np.minimum(columns.requests["replica"], columns.totals["replicas"])]
    return of_request


def check_token_runs(columns: Columns) -> TokenRuns:
    """Check that token runs lie within their replica's steps and agree with the requests; return them."""
    requests, raw = columns.requests, columns.token_runs
    if bool((raw["request"] >= len(requests["status"])).any()):
        raise InvariantError(f"token_runs names request {raw['request'].max()} of {len(requests['status'])}")
    if bool((requests["replica"][raw["request"]] == NONE_U32).any()):
        raise InvariantError("token_runs names a request that was never routed")
    steps = np.diff(columns.replica_offsets)[requests["replica"][raw["request"]]]
    carried = raw["first_step"] == CARRIED
    bad = (raw["first_step"] > raw["last_step"]) | (raw["tokens_per_step"] < 1)
    bad |= ~carried & (raw["last_step"] >= steps)
    bad |= carried & ((raw["last_step"] != CARRIED) | (raw["tokens_per_step"] != 1))
    bad |= carried & (requests["first_token_ns"][raw["request"]] == NEVER)
    no_request(
        bad,
        "emitted tokens in steps that do not exist",
        raw["request"],
        first=raw["first_step"],
        last=raw["last_step"],
    )
    runs = TokenRuns.from_columns(columns)
    same = runs.request[1:] == runs.request[:-1]
    # Carried tokens come first, and are numbered behind all steps.
    carried = carried[np.argsort(raw["request"], kind="stable")]
    no_request(same & carried[1:], "has a token beside its carried one before it", runs.request[1:])
    overlap = same & ~carried[:-1] & (runs.first[1:] <= runs.last[:-1])
    no_request(overlap, "has token runs out of order", runs.request[1:])
    late = runs.end_ns[runs.last] > columns.totals["end_ns"]
    no_request(late, "emitted a token after the end of the run", runs.request)
    generated = requests["generated_tokens"].astype(np.int64)
    tokens = runs.tokens_per_request
    no_request(
        tokens != generated, "has token runs that miss its token count", runs=tokens, generated=generated
    )
    if len(runs.request):
        first = np.append(True, ~same)
        _check_stamp(columns, "first_token_ns", runs.request[first], runs.end_ns[runs.first[first]])
        last = np.append(~same, True)
        done = last & (requests["status"][runs.request] == FINISHED)
        _check_stamp(columns, "finished_ns", runs.request[done], runs.end_ns[runs.last[done]])
    return runs


def _check_stamp(columns: Columns, name: str, request: Ints, step_end_ns: Ints) -> None:
    stamp = columns.requests[name][request]
    message = f"has a {name} other than the end of the step that emitted the token"
    no_request(stamp != step_end_ns, message, request, **{name: stamp, "step_end_ns": step_end_ns})


def check_steps(columns: Columns) -> None:
    """Check that the steps of each replica end in order, after the start of the run, and add up.

    A step that was in flight when a run was stopped ends after the run; it emitted nothing.
    """
    for name in ("num_steps", "num_empty_steps"):
        counted = sum(getattr(cluster, name) for cluster in columns.clusters)
        if counted != columns.totals[name]:
            raise InvariantError(f"totals.{name} is {columns.totals[name]}, clusters add up to {counted}")
    end_ns = columns.steps["end_ns"]
    back = np.diff(end_ns) < 0
    starts = columns.replica_offsets[1:-1]
    back[starts[(starts > 0) & (starts < len(end_ns))] - 1] = False
    if bool(back.any()):
        raise InvariantError(f"step {int(np.flatnonzero(back)[0]) + 1} ends before the step before it")
    if len(end_ns) and int(end_ns.min()) < 0:
        raise InvariantError("a step ends before the run starts")


def check_timeline(columns: Columns) -> None:
    """Check that counters never fall, stay within bounds, and end at the totals of the request columns."""
    timeline, requests = columns.timeline, columns.requests
    replica = timeline["replica"]
    if bool((replica >= columns.totals["replicas"]).any()):
        raise InvariantError(f"timeline has replica {replica.max()} of {columns.totals['replicas']}")
    order = np.argsort(replica, kind="stable")
    same = replica[order][1:] == replica[order][:-1]
    for name in ("time_ns", *TIMELINE_COUNTERS):
        if bool((same & (np.diff(timeline[name][order]) < 0)).any()):
            raise InvariantError(f"timeline.{name} falls within a replica")
    if bool((timeline["busy_ns"] > timeline["time_ns"]).any()):
        raise InvariantError("timeline.busy_ns exceeds the time elapsed")
    _check_blocks(columns, order, same)
    last = np.append(~same, True)[: len(order)]
    totals = {
        "output_tokens": requests["generated_tokens"],
        "finished": requests["status"] == FINISHED,
        "preemptions": requests["preemptions"],
    }
    # Who prefills for others counts the one token that it makes of a prompt, which no request does. Where KV
    # goes next may be known only later, so what a stopped run left unfinished may have such a token too.
    dropped = len(columns.transfers["request"])
    if len(columns.clusters) > 1:
        dropped += int(np.isin(requests["status"], (UNFINISHED, FAILED)).sum())
    # So do encoders, of what a request brings, which may be nothing.
    dropped += int((requests["encoder_tokens"] > 0).sum())
    # Engines made the tokens of attempts that were lost as well.
    again = requests["attempts"].astype(np.int64) - 1
    lost = int((again * requests["output_tokens"]).sum())
    dropped += int(again.sum())
    spare = {"output_tokens": dropped + lost, "finished": dropped}
    for name, column in totals.items():
        counted, expected = int(timeline[name][order][last].sum()), int(column.sum(dtype=np.int64))
        if not expected <= counted <= expected + spare.get(name, 0):
            raise InvariantError(f"timeline.{name} ends at {counted}, the requests add up to {expected}")


def _check_blocks(columns: Columns, order: NDArray[np.intp], same: NDArray[np.bool_]) -> None:
    """Check that blocks stay within the pool, and peaks within what was used and what was integrated.

    `order` sorts the samples by replica, `same` says where the next one in that order is of the same replica.
    """
    timeline = columns.timeline
    time, used, peak, integral, engine = (
        timeline[name][order]
        for name in ("time_ns", "used_blocks", "peak_used_blocks", "used_block_ns", "replica")
    )
    usable = columns.usable_blocks_of_engine[engine]
    for name, values in (("used_blocks", used), ("peak_used_blocks", peak)):
        beyond = np.flatnonzero(values > usable)
        if len(beyond):
            raise InvariantError(f"timeline.{name} exceeds the {usable[beyond[0]]} usable blocks")
    before = np.append(False, same)[: len(order)]
    held = np.where(before, np.roll(used, 1), 0)
    if bool((peak < np.maximum(used, held)).any()):
        raise InvariantError(
            "timeline.peak_used_blocks is less than the used_blocks at the ends of its interval"
        )
    grown = integral - np.where(before, np.roll(integral, 1), 0.0)
    most = peak * (time - np.where(before, np.roll(time, 1), 0)).astype(np.float64)
    # The integral is exact in the simulator and rounded to a float of 53 bits once.
    if bool((grown > most + 1e-12 * integral + 1.0).any()):
        raise InvariantError("timeline.used_block_ns grows faster than timeline.peak_used_blocks allows")


def check_kv_tiers(columns: Columns) -> None:
    """Check that each tier was asked for what the faster ones lacked, and that hits make the prefix hits."""
    for cluster in columns.clusters:
        _check_kv_tiers(cluster.kv_tiers)
    tiers = columns.kv_tiers
    if all(cluster.kv_tiers for cluster in columns.clusters) and not bool(
        (columns.requests["status"] == UNFINISHED).any()
    ):
        # Of a prompt that was loaded as a whole, one token is computed again.
        surplus = sum(tier.hit_tokens for tier in tiers) - columns.totals["prefix_hit_tokens"]
        if not 0 <= surplus <= len(columns.requests["status"]) + len(columns.transfers["request"]):
            raise InvariantError(
                f"kv_tiers: hits are {surplus} tokens more than totals.prefix_hit_tokens says"
            )


def _check_kv_tiers(tiers: Sequence[KvTier]) -> None:
    for tier in tiers:
        if tier.hit_blocks > tier.lookup_blocks:
            raise InvariantError(
                f"kv_tiers: {tier.tier} has {tier.hit_blocks} hits of {tier.lookup_blocks} look-ups"
            )
    for faster, slower in itertools.pairwise(tiers):
        lacked = faster.lookup_blocks - faster.hit_blocks
        if slower.lookup_blocks != lacked:
            raise InvariantError(
                f"kv_tiers: {slower.tier} was asked for {slower.lookup_blocks} blocks, "
                f"{faster.tier} lacked {lacked}"
            )


def check_prefix_hits(columns: Columns) -> None:
    """Check that prefix hits of the requests add up to the total and stay within the prompts."""
    requests, totals = columns.requests, columns.totals
    cached = requests["cached_tokens"]
    no_request(
        cached > requests["prompt_tokens"], "hit more of its prefix than its prompt has", cached_tokens=cached
    )
    hits = int(cached.sum(dtype=np.int64))
    # Requests know what they found where they came first; where they were handed over, or started over, they
    # may find more.
    more = totals["prefix_hit_tokens"] - hits
    may = len(columns.transfers["request"]) or bool((requests["attempts"] > 1).any())
    if more < 0 or (more and not may):
        raise InvariantError(
            f"totals.prefix_hit_tokens is {totals['prefix_hit_tokens']}, requests add up to {hits}"
        )
    if totals["prefix_hit_tokens"] > totals["prefix_lookup_tokens"]:
        raise InvariantError("totals.prefix_hit_tokens exceeds prefix_lookup_tokens")


def check_drafts(columns: Columns) -> None:
    """Check that drafts of the requests add up to the totals by position, and that no more are accepted."""
    requests, totals = columns.requests, columns.totals
    steps, drafted, accepted = (requests[n] for n in ("num_drafts", "draft_tokens", "accepted_tokens"))
    no_request(accepted > drafted, "accepted more drafts than it had", draft_tokens=drafted)
    no_request(
        steps > drafted, "has steps with drafts without drafts", num_drafts=steps, draft_tokens=drafted
    )
    most = requests["generated_tokens"].astype(np.int64)
    # Each step with drafts gives a token beside the accepted ones; the last may be cut short by the end.
    finished = (requests["status"] == FINISHED) & (requests["attempts"] == 1) & (steps > 0)
    no_request(finished & (steps > most), "has more steps with drafts than tokens", num_drafts=steps)
    for name, column in (("drafted_per_position", drafted), ("accepted_per_position", accepted)):
        counted, expected = sum(totals[name]), int(column.sum(dtype=np.int64))
        if counted != expected:
            raise InvariantError(f"totals.{name} sums up to {counted}, the requests to {expected}")


def check_all(columns: Columns, max_model_lens: Sequence[int | None]) -> TokenRuns:
    """Run every check, and return the token runs.

    `max_model_lens` are the limits of the clusters, or one for all.

    Raises:
        InvariantError: naming the first request and the law it breaks.
    """
    check_statuses(columns)
    check_attribution(columns)
    check_transfers(columns)
    check_tokens(columns, max_model_lens)
    check_steps(columns)
    runs = check_token_runs(columns)
    check_timeline(columns)
    check_prefix_hits(columns)
    check_drafts(columns)
    check_kv_tiers(columns)
    return runs
