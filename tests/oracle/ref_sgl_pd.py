"""A slow restatement of SGLang 0.5.3's prefill and decode servers: one of each, and a link between them.

It follows `disaggregation/prefill.py` and `disaggregation/decode.py` (loops, queues, when memory is taken and
given back) loop by loop, as generators that say when they wait. How a prefill batch is filled is `ref_sgl`,
which equals the real scheduler's logs. Each server's loop is the real one; what is assumed beside it:

- A loop's own work takes no time; steps take what `clock` says, one after the other.
- An idle server looks at its queues whenever something happens; `polling` turns are counted from then.
- Each piece of a prompt's KV takes `latency + per_token * tokens`, beside all others. When the last one is
  there both servers can see it.

    run(config, requests) -> (records by server, events, requests)

Names are as in `ref_sgl`. Page size 1, no priorities, no speculation.
"""

# ruff: noqa: N805

import heapq
from collections import deque

from ref_sched import parse_trace
from ref_sgl import CLIP, Adder, Batch, Refused, Req, Sched

__all__ = ["Refused", "parse_trace", "run"]

TURN, IDLE = "turn", "idle"


class Gpu:
    """Runs one step after the other."""

    def __init__(s, clock):
        s.k, s.free = clock, 0

    def launch(s, now, pf, n, kv, dc):
        k, start = s.k, max(now, s.free)
        s.free = start + k["a"] + k["b"] * pf + k["c"] * n + k["d"] * kv + k["e"] * dc
        return start, s.free


class Prompts(Sched):
    """The prefill server."""

    def __init__(s, c, world):
        super().__init__({**c, "mixed_chunk": False, "enable_priority": False, "low_values_first": False})
        s.world, s.gpu, s.overlap = world, Gpu(c["clock"]), c["overlap"]
        s.bootstrap = []  # of which the decode server has allocated some
        s.allocated, s.sent = set(), set()
        s.buffers = 2 * c["max_running_requests"]
        s.sending, s.steps, s.log = [], 0, []

    def pop_bootstrapped(s):
        ready = []
        for q in s.bootstrap:
            if q.id not in s.allocated:
                continue
            if s.buffers == 0:
                break
            s.buffers -= 1
            ready.append(q)
        s.bootstrap = [q for q in s.bootstrap if q not in ready]
        s.waiting += ready

    def new_batch(s):
        s.running.full = False
        if not s.waiting and not s.chunked:
            return None
        s.order_queue()
        add = Adder(s)
        if s.chunked:
            s.chunked = add.continue_chunked(s.chunked)
        for q in s.waiting:
            if len(add.reqs) >= min(s.c["max_running_requests"], s.rows):
                break
            s.match(q)
            q.ext = q.fill - q.prefix
            if add.try_add(q) != "more":
                break
        if not add.reqs:
            return None
        s.waiting = [q for q in s.waiting if q not in add.reqs]
        if add.new_chunked:
            s.chunked = add.new_chunked
        if s.chunked:
            s.chunked.chunks += 1
        b = Batch(add.reqs)
        b.mode, b.chunked = "extend", s.chunked
        s.launch_extend(b)
        return b

    def results(s, b, now):
        out = []
        for i, q in enumerate(b.reqs):
            if q.chunks > 0:
                q.chunks -= 1
                s.world.send(now, q, b.lens[i], last=False)
                continue
            q.tok.append(q.obase)
            q.nout = 1
            s.cache_partial(q)
            s.sending.append(q)
            s.world.send(now, q, q.P, last=True)
            out.append(q.id)
        return out

    def poll_sending(s):
        done = [q for q in s.sending if q.id in s.sent]
        s.sending = [q for q in s.sending if q.id not in s.sent]
        for q in done:
            s.cache_finished(q)
            s.buffers += 1
        return bool(done)

    def loop(s):
        queue, last = deque(), None
        while True:
            yield TURN
            s.pop_bootstrapped()
            if last is not None and s.chunked:
                s.cache_partial(s.chunked)
                s.rows += 1
            b = s.new_batch()
            if b is not None:
                queue.append((b, s.record(b)))
            waits = last is not None if s.overlap else b is not None
            if waits:
                done, rec = queue.popleft()
                yield rec["end"]
                rec["out"] = rec["fin"] = s.results(done, rec["end"])
            released = s.poll_sending()
            if waits:
                rec["avail_end"], rec["evictable_end"] = s.avail, s.tree.evictable
                s.log.append(rec)
            last = b
            if b is None and not waits and not released:
                yield IDLE

    def record(s, b):
        sched = [
            [q.id, "chunk" if q.chunks > 0 else "prefill", b.pre[i], b.ext[i]] for i, q in enumerate(b.reqs)
        ]
        pf, kv, now = sum(b.ext), sum(b.lens), s.world.now
        start, end = s.gpu.launch(now, pf, len(b.reqs), kv, 0)
        s.steps += 1
        return {
            "step": s.steps - 1,
            "ts": now,
            "start": start,
            "end": end,
            "mode": "extend",
            "sched": sched,
            "wait": [q.id for q in s.waiting],
            "run": [],
            "chunked": s.chunked.id if s.chunked else None,
            "avail": s.avail,
            "evictable": s.tree.evictable,
            "pf": pf,
            "dc": 0,
            "kv": kv,
        }


class Outputs:
    """The decode server. There is no tree: prompt and output of each request are its own."""

    def __init__(s, c, world):
        s.c, s.world, s.gpu, s.overlap = c, world, Gpu(c["clock"]), c["overlap"]
        s.avail, most = c["max_total_tokens"], c["max_running_requests"]
        s.rows = most + (2 * most if most <= 32 else 0)
        s.buffers = 2 * most
        s.prealloc, s.transfer, s.waiting, s.retracted = [], [], [], []
        s.running, s.lens = [], {}
        s.last, s.count = None, 0
        s.received = set()
        s.steps, s.log, s.gone = 0, [], []
        s.void = set()

    # -- queues --
    def kept(s, longest):
        n = len(s.running) + len(s.transfer) + len(s.waiting)
        free = s.avail - max(s.c["reserved"] * n, longest)
        if s.last is not None and s.last[0] == "prebuilt":
            free -= s.c["reserved"] * len(s.last[1])
        return free

    def take(s, n):
        if n > s.avail:
            raise Refused("out of memory")
        s.avail -= n

    def resume(s):
        free = s.kept(0)
        while s.retracted:
            q = s.retracted[0]
            need = q.P + q.nout + s.c["reserved"]
            if s.rows <= 0 or need > free:
                break
            free -= need
            s.retracted.pop(0)
            s.rows -= 1
            s.take(q.P + max(q.nout - 1, 0))
            s.void.discard(q.id)
            s.waiting.append(q)

    def pop_preallocated(s):
        retractable = sum(q.P + q.nout for q in s.running)
        longest = max((min(q.max_new, CLIP) + q.P - retractable for q in s.running), default=0)
        free = s.kept(longest)
        while s.prealloc:
            q = s.prealloc[0]
            need = q.P + s.c["reserved"]
            if s.rows <= 0 or s.buffers <= 0:
                break
            if max(need, q.P + min(q.max_new, CLIP) - retractable) > free:
                break
            free -= need
            s.prealloc.pop(0)
            s.rows -= 1
            s.buffers -= 1
            s.take(q.P)
            s.transfer.append(q)
            s.world.allocated(q)

    def pop_transferred(s):
        here = [q for q in s.transfer if q.id in s.received]
        s.transfer = [q for q in s.transfer if q.id not in s.received]
        ended = []
        for q in here:
            q.nout = 1
            s.buffers += 1
            if q.max_new == 1:
                q.done = True
                s.free(q)
                ended.append(q)
            else:
                s.waiting.append(q)
        return ended

    def free(s, q):
        s.avail += q.P + max(q.nout - 1, 0)
        s.rows += 1

    def look(s, idle):
        s.resume()
        if s.retracted:
            return []
        s.count += 1
        if not idle and s.count < s.c["polling"]:
            return []
        s.count = 0
        s.pop_preallocated()
        return s.pop_transferred()

    # -- batches --
    def next(s):
        if s.last is not None and s.last[0] == "prebuilt":
            s.running += [q for q in s.last[1] if not q.done]
        s.last = None
        room = s.c["max_running_requests"] - len(s.running)
        if s.waiting and room > 0:
            new, s.waiting = s.waiting[:room], s.waiting[room:]
            for q in new:
                s.lens[q.id] = q.P + q.nout - 1
            return ("prebuilt", new)
        s.running = [q for q in s.running if not q.done]
        if not s.running:
            return None
        if s.avail < len(s.running):
            s.retract()
        for q in s.running:
            s.lens[q.id] += 1
        s.take(len(s.running))
        return ("decode", list(s.running))

    def retract(s):
        order = sorted(s.running, key=lambda q: (q.nout, -q.P), reverse=True)
        first = True
        while first or s.avail < len(order):
            if len(order) == 1:
                if s.avail <= 0:
                    raise Refused("no slot left for the only request")
                break
            first = False
            q = order.pop()
            s.avail += s.lens[q.id]
            s.rows += 1
            s.void.add(q.id)
            s.retracted.append(q)
            s.gone.append(q.id)
        if len(order) < len(s.running):
            s.running = order

    def results(s, reqs):
        out, fin = [], []
        for q in reqs:
            if q.id in s.void:
                continue
            if s.overlap and q.done:
                s.avail += 1  # it rode along
                continue
            q.nout += 1
            out.append(q)
            if q.nout >= q.max_new:
                q.done = True
                s.free(q)
                fin.append(q)
        return out, fin

    def loop(s):
        queue, last_in_queue = deque(), False
        while True:
            yield TURN
            now = s.world.now
            s.gone = []
            idle = not s.running and not queue and s.last is None
            ended = s.look(idle)
            b = s.next()
            news = [*ended, *(b[1] if b is not None and b[0] == "prebuilt" else [])]
            if news:
                s.world.carried(now, news)
            for q in ended:
                s.world.finished(now, q)
            launched = b is not None and b[0] == "decode"
            if launched:
                queue.append((b[1], s.record(b[1])))
            waits = last_in_queue if s.overlap else launched
            if waits:
                reqs, rec = queue.popleft()
                yield rec["end"]
                out, fin = s.results(reqs)
                for q in out:
                    s.world.token(rec["end"], q)
                for q in fin:
                    s.world.finished(rec["end"], q)
                rec["out"], rec["fin"] = [q.id for q in out], [q.id for q in fin]
                rec["avail_end"], rec["evictable_end"] = s.avail, 0
                s.log.append(rec)
            s.last, last_in_queue = b, launched
            if idle and b is None and not ended:
                yield IDLE

    def record(s, reqs):
        kv, now = sum(s.lens[q.id] for q in reqs), s.world.now
        start, end = s.gpu.launch(now, 0, len(reqs), kv, len(reqs))
        s.steps += 1
        rec = {
            "step": s.steps - 1,
            "ts": now,
            "start": start,
            "end": end,
            "mode": "decode",
            "sched": [[q.id, "decode", s.lens[q.id] - 1, 1] for q in reqs],
            "wait": [q.id for q in s.waiting],
            "run": [q.id for q in s.running],
            "chunked": None,
            "avail": s.avail,
            "evictable": 0,
            "pf": 0,
            "dc": len(reqs),
            "kv": kv,
        }
        if s.gone:
            rec["retract"] = s.gone
        return rec


class World:
    """Time, the link, and what is seen from outside."""

    def __init__(s, c, reqs):
        s.c, s.now, s.heap, s.order = c, 0, [], 0
        s.p, s.d = Prompts(c["prefill"], s), Outputs(c["decode"], s)
        s.loops = {s.p: s.p.loop(), s.d: s.d.loop()}
        for loop in s.loops.values():
            next(loop)  # up to its first turn
        s.waits, s.ready = set(), deque()
        s.events, s.out = (
            [],
            {r["id"]: {"arrive": r["t"], "first": None, "fin": None, "ntok": 0} for r in reqs},
        )
        s.ends, s.upto = {}, {}
        for number, r in enumerate(reqs):
            s.at(r["t"], 2, ("arrive", number, r))

    def at(s, t, phase, what):
        s.order += 1
        heapq.heappush(s.heap, (t, phase, s.order, what))

    def poke(s, server):
        if server not in s.waits and server not in s.ready:
            s.ready.append(server)

    # -- what the servers tell --
    def allocated(s, q):
        s.events.append(["reserve", s.now, q.id])
        s.p.allocated.add(q.id)
        s.poke(s.p)

    def carried(s, now, reqs):
        s.events.append(["carried", now, [q.id for q in reqs]])
        for q in reqs:
            if s.out[q.id]["first"] is None:
                s.out[q.id]["first"] = now
                s.out[q.id]["ntok"] = 1

    def token(s, now, q):
        s.out[q.id]["ntok"] += 1

    def finished(s, now, q):
        s.out[q.id]["fin"] = now

    def send(s, now, q, upto, last):
        if s.c["granularity"] == "request" and not last:
            return
        tokens = upto - s.upto.get(q.id, 0)
        s.upto[q.id] = upto
        if tokens:
            end = now + s.c["latency"] + s.c["per_token"] * tokens
            s.ends[q.id] = max(s.ends.get(q.id, 0), end)
        if last:
            s.at(s.ends[q.id], 0, ("moved", q.id))

    # -- time --
    def run(s):
        while s.heap or s.ready:
            if s.ready and (not s.heap or s.heap[0][0] > s.now):
                s.advance(s.ready.popleft())
                continue
            s.now, _, _, what = heapq.heappop(s.heap)
            if what[0] == "arrive":
                r = what[2]
                s.d.prealloc.append(Req(r, 0))
                s.p.bootstrap.append(Req({**r, "out": 1}, 0))
                s.poke(s.d)
            elif what[0] == "moved":
                s.p.sent.add(what[1])
                s.d.received.add(what[1])
                s.poke(s.p)
                s.poke(s.d)
            else:
                server = what[1]
                s.waits.discard(server)
                next(s.loops[server])  # results, up to the next turn
                s.poke(server)

    def advance(s, server):
        """Take turns until the server waits for a step, or finds nothing to do."""
        while True:
            said = next(s.loops[server])
            if said == TURN:
                continue
            if said == IDLE:
                next(s.loops[server])  # stands before its next turn
                return
            s.waits.add(server)
            s.at(said, 1, ("step", server))
            return


def run(config, reqs):
    """-> records of the prefill server, of the decode server, events in order, requests by id"""
    world = World(config, reqs)
    world.run()
    left = [name for name, row in world.out.items() if row["fin"] is None]
    if left:
        raise Refused(f"stuck: {left}")
    return world.p.log, world.d.log, world.events, world.out
