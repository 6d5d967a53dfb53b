"""A slow restatement of TensorRT-LLM's schedulers, one list of active requests in order of arrival.

After `batch_manager/{capacityScheduler,microBatchScheduler}.cpp`: the capacity scheduler counts blocks
without taking any, the micro-batch scheduler chooses, and only what was chosen takes blocks. A step lasts one
unit of time. Without block reuse.
"""

from dataclasses import dataclass


@dataclass
class Request:
    """A request; `started`: it holds blocks."""

    number: int
    arrival: int
    prompt: int
    output: int
    known: int = 0
    computed: int = 0
    blocks: int = 0
    started: bool = False
    generating: bool = False


def needed(request: Request, tokens: int, block_size: int) -> int:
    return max(-(-tokens // block_size) - request.blocks, 0)


def guaranteed_no_evict(active: list[Request], free: int, block_size: int, seats: int) -> list[Request]:
    def to_the_end(request: Request) -> int:
        return needed(request, max(request.prompt + request.output - 1, request.known), block_size)

    fitting = [request for request in active if request.started]
    available = free - sum(to_the_end(request) for request in fitting)
    for request in (request for request in active if not request.started):
        if len(fitting) >= seats or to_the_end(request) > available:
            break
        available -= to_the_end(request)
        fitting.append(request)
    return fitting


def max_utilization(
    active: list[Request], free: int, block_size: int, seats: int
) -> tuple[list[Request], list[Request]]:
    fitting: list[Request] = []
    paused: list[Request] = []
    end, at, taken = len(active), 0, 0
    while at < end:
        request = active[at]
        more = needed(request, request.known, block_size)
        if len(fitting) < seats and taken + more <= free:
            taken += more
            fitting.append(request)
            at += 1
            continue
        last = next((i for i in range(end - 1, at - 1, -1) if active[i].started), None)
        if last is None:
            break
        paused.append(active[last])
        free += active[last].blocks
        end = last
    return fitting, paused


def micro_batch(
    fitting: list[Request], *, seats: int, budget: int, chunked: bool, unit: int
) -> list[tuple[Request, int]]:
    contexts: list[Request] = []
    generations: list[Request] = []
    used = 0
    for request in fitting:
        tokens = request.known - request.computed
        if request.generating or not chunked:
            if used + tokens > budget:
                break
            used += tokens
        (generations if request.generating else contexts).append(request)
        if len(contexts) + len(generations) >= seats:
            break
    left = budget - len(generations)
    batch = []
    for request in contexts:
        tokens = request.known - request.computed
        chunk = tokens if tokens <= left else left // unit * unit
        if chunk:
            batch.append((request, chunk))
            left -= chunk
    return batch + [(request, 1) for request in generations]


def run(
    requests: list[Request],
    *,
    policy: str,
    num_blocks: int,
    block_size: int,
    seats: int,
    budget: int,
    chunked: bool,
) -> list[tuple[int, list[tuple[int, int]], list[int]]]:
    """Return (time, batch as (request, tokens), paused requests) of every step."""
    coming = sorted(requests, key=lambda request: (request.arrival, request.number))
    for request in coming:
        request.known = request.prompt
    active: list[Request] = []
    log, now = [], 0
    while coming or active:
        if not active:
            now = max(now, coming[0].arrival)
        while coming and coming[0].arrival <= now:
            active.append(coming.pop(0))
        free = num_blocks - sum(request.blocks for request in active)
        paused: list[Request] = []
        if policy == "guaranteed_no_evict":
            fitting = guaranteed_no_evict(active, free, block_size, seats)
        else:
            fitting, paused = max_utilization(active, free, block_size, seats)
        for request in paused:
            request.blocks = request.computed = 0
            request.started = request.generating = False
        batch = micro_batch(fitting, seats=seats, budget=budget, chunked=chunked, unit=block_size)
        for request, tokens in batch:
            request.started = True
            request.blocks += needed(request, request.known, block_size)
            request.computed += tokens
        assert sum(request.blocks for request in active) <= num_blocks
        log.append((now, [(r.number, tokens) for r, tokens in batch], [r.number for r in paused]))
        now += 1
        for request, _ in batch:
            if request.computed == request.known:
                request.known += 1
                request.generating = True
        active = [request for request in active if request.known < request.prompt + request.output]
    return log
