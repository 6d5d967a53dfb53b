"""A slow, dependency-free restatement of SGLang 0.5.3's batch formation: the differential tests' oracle.

It restates what the real `Scheduler`, `PrefillAdder`, `SchedulePolicy` and `RadixCache` were seen to do when
driven with a mock model on an integer clock (page size 1, one engine, no speculation), and reproduces every
log of `tests/golden/sglang_scheduler.tar.xz` byte for byte.

    ref_sgl.py --check DIR                                   compare with DIR/NAME.{json,csv,jsonl}
    ref_sgl.py --config C.json --trace T.csv --out L.jsonl   write a log

Where the engine fails (an assertion, a pool that runs out), `Refused` is raised; --check then expects a log
without summary. Slots are only counted: which slot a token gets never matters to the scheduler. Names are
short because the rules are long: `s` is the object itself, `q` a request, `b` a batch, `a` the budgets, `n` a
number of tokens.
"""

# ruff: noqa: C408, E731, N805, N818, PLR0915, C413, RUF005, RUF023, SIM115

import argparse
import glob
import heapq
import json
import os
import sys
import time
from collections import defaultdict

from ref_sched import load_trace, parse_trace

__all__ = ["DEFAULTS", "Refused", "dump", "load_trace", "parse_trace", "run"]

DEFAULTS = dict(
    max_total_tokens=4000,
    max_running_requests=64,
    context_len=8192,
    chunked_prefill_size=2048,
    max_prefill_tokens=16384,
    policy="fcfs",
    disable_radix_cache=False,
    eviction_policy="lru",
    mixed_chunk=False,
    overlap=False,
    schedule_conservativeness=1.0,
    enable_priority=False,
    priority_preemption_threshold=10,
    low_values_first=False,
    max_steps=20000,
    clock=dict(a=5_000_000, b=50_000, c=100_000, d=100, e=50_000),
)
CLIP = 4096  # longest output that admission reserves memory for
INIT_RATIO, MIN_FACTOR, DECAY_STEPS = 0.7, 0.14, 600.0
RETRACT_STEPS = 20  # decode steps that a retraction makes room for
CHECK_BELOW, DEPRIORITIZE_FROM = 32, 32  # lpm: prefixes shared inside the queue
LPM_MAX_QUEUE = 128


class Refused(Exception):
    """The real engine would stop here with an exception."""


# ---- radix cache ----------------------------------------
class Node:
    __slots__ = ("key", "kids", "parent", "lock", "t")

    def __init__(s, key, parent, t):
        s.key, s.kids, s.parent, s.lock, s.t = (
            key,
            {},
            parent,
            0,
            t,
        )  # kids: first token -> node, in order of insertion


class Tree:
    """Radix tree over tokens. Every visit of a node takes the next tick, so access times never tie."""

    def __init__(s):
        s.tick = 0
        s.root = Node([], None, 0)
        s.evictable = 0  # tokens in nodes without a lock

    def now(s):
        s.tick += 1
        return s.tick

    def walk(s, toks, n):
        """Follow toks[:n] as far as the tree has them; a node that matches in part is split. -> (last
        node, matched)"""
        node, i = s.root, 0
        while i < n and toks[i] in node.kids:
            kid = node.kids[toks[i]]
            kid.t = s.now()
            m = len(kid.key)
            if i + m > n or kid.key != toks[i : i + m]:
                stop, m = min(m, n - i), 1
                while m < stop and kid.key[m] == toks[i + m]:
                    m += 1
            i += m
            if m < len(kid.key):
                return s.split(kid, m), i
            node = kid
        return node, i

    def split(s, kid, m):
        head = Node(
            kid.key[:m], kid.parent, s.now()
        )  # newer than the tail, which keeps the old node (and its children)
        head.lock = kid.lock
        head.kids[kid.key[m]] = kid
        head.parent.kids[kid.key[0]] = head  # same place in the order of the siblings
        kid.key, kid.parent = kid.key[m:], head
        return head

    def insert(s, toks, n):
        """-> how many of the n tokens were already there"""
        node, i = s.walk(toks, n)
        if i < n:
            node.kids[toks[i]] = Node(toks[i:n], node, s.now())
            s.evictable += n - i
        return i

    def lock(s, node):
        while node is not s.root:
            if node.lock == 0:
                s.evictable -= len(node.key)
            node.lock += 1
            node = node.parent

    def unlock(s, node):
        while node is not s.root:
            if node is None:
                raise Refused("release of a request that holds no node")
            if node.lock == 1:
                s.evictable += len(node.key)
            node.lock -= 1
            node = node.parent

    def evict(s, n):
        """Remove unlocked leaves, oldest access first, until n tokens are gone. A locked leaf protects
        its parents. -> tokens freed"""
        heap, stack, freed = [], [s.root], 0
        while stack:
            x = stack.pop()
            stack.extend(x.kids.values())
            if not x.kids:
                heap.append((x.t, id(x), x))
        heapq.heapify(heap)
        while freed < n and heap:
            _, _, x = heapq.heappop(heap)
            if x is s.root:
                break
            if x.lock > 0:
                continue
            freed += len(x.key)
            s.evictable -= len(x.key)
            del x.parent.kids[x.key[0]]
            if not x.parent.kids:
                heapq.heappush(heap, (x.parent.t, id(x.parent), x.parent))
        return freed


# ---- requests and batches ----------------------------------------
class Req:
    def __init__(q, r, prio):
        q.id, q.tok, q.P, q.max_new, q.obase, q.prio = (
            r["id"],
            list(r["prompt"]),
            len(r["prompt"]),
            r["out"],
            r["obase"],
            prio,
        )
        q.nout = 0  # generated tokens; q.tok = prompt + generated
        q.prefix = 0  # tokens at the start of q.tok whose slots are shared with (or given to) the tree
        q.fill = 0  # tokens that are computed once the current extend has run
        q.ext = 0  # tokens of the current extend
        q.node = None  # the tree node that is locked for it
        q.chunks = 0  # chunks whose result is still to come
        q.done = q.retracted = False
        q.entered = 0

    reserve = property(lambda q: min(q.max_new, CLIP))


class Batch:
    def __init__(b, reqs=(), full=False):
        b.reqs, b.lens, b.full = (
            list(reqs),
            [],
            full,
        )  # lens: tokens in the KV cache per request, including the running step
        b.mode = b.chunked = b.decoding = None
        b.pre, b.ext, b.slots = [], [], 0

    def keep(b, idx):
        if len(idx) != len(b.reqs):
            b.reqs, b.lens = [b.reqs[i] for i in idx], [b.lens[i] for i in idx]

    def drop_finished(b, exclude=()):
        b.keep([i for i, q in enumerate(b.reqs) if not q.done and q not in exclude])

    def merge(b, other):
        b.reqs.extend(other.reqs)
        b.lens = b.lens + other.lens


# ---- the scheduler ----------------------------------------
class Sched:
    def __init__(s, c):
        s.c = c
        s.radix = not c["disable_radix_cache"]
        s.tree = Tree()  # stays empty without the radix cache
        s.avail, s.rows = c["max_total_tokens"], c["max_running_requests"]
        s.policy = c["policy"] if s.radix or c["policy"] not in ("lpm", "dfs-weight") else "fcfs"
        s.chunk = c["chunked_prefill_size"]
        s.mixed = c["mixed_chunk"] and s.chunk is not None
        s.prio, s.sign = (
            c["enable_priority"],
            1 if c["low_values_first"] else -1,
        )  # smaller sign * priority is served first
        s.waiting, s.running, s.last, s.chunked = [], Batch(), None, None
        s.ratio0 = min(INIT_RATIO * c["schedule_conservativeness"], 1.0)
        s.ratio_min = min(s.ratio0 * MIN_FACTOR, 1.0)
        s.decay = (s.ratio0 - s.ratio_min) / DECAY_STEPS
        s.ratio = s.ratio0
        s.returned = []  # requests put back in this turn (for the log)
        s.entries = 0

    # -- memory --
    def make_room(s, n):
        if s.avail < n:
            s.avail += s.tree.evict(n)  # n, not what is missing

    def alloc(s, n):
        s.make_room(n)
        if n > s.avail:
            raise Refused(f"out of memory: {n} slots wanted, {s.avail} free")
        s.avail -= n

    def match(s, q):
        """Longest cached prefix of all but the last token."""
        q.fill = len(q.tok)
        q.node, q.prefix = s.tree.walk(q.tok, max(q.fill - 1, 0)) if s.radix else (None, 0)

    def cache_partial(s, q):
        """Give the computed tokens to the tree; what others gave before is freed. The request stays
        locked to the end of it."""
        if not s.radix:
            q.prefix = q.fill
            return
        had = s.tree.insert(q.tok, q.fill)
        s.avail += max(had - q.prefix, 0)
        node, n = s.tree.walk(q.tok, q.fill)
        s.tree.unlock(q.node)
        s.tree.lock(node)
        q.node, q.prefix = node, n

    def cache_finished(s, q):
        n = len(q.tok) - 1  # the last token was never run
        s.rows += 1
        if not s.radix:
            s.avail += n
            return
        had = s.tree.insert(q.tok, n)
        s.avail += max(had - q.prefix, 0)
        s.tree.unlock(q.node)

    def release(s, b, i, rest):
        """Take request i of the batch b off the device; rest: requests that remain (room is made for
        their next steps)."""
        q = b.reqs[i]
        s.avail += max(b.lens[i] - q.prefix, 0) if s.radix else b.lens[i]
        s.rows += 1
        if s.radix:
            s.tree.unlock(q.node)
            s.make_room(rest * RETRACT_STEPS)
        q.prefix = q.ext = q.chunks = 0
        q.node, q.retracted = None, True

    # -- queue --
    def enter(s, q, back=False):
        if back or q.nout:
            s.returned.append(q.id)
        s.entries += 1
        q.entered = s.entries
        s.waiting.append(q)

    def order_queue(s):
        w, key = s.waiting, lambda q: s.sign * q.prio
        if s.policy == "fcfs":
            if s.prio:
                w.sort(key=lambda q: (key(q), q.entered))
        elif s.policy == "lof":
            w.sort(key=lambda q: (key(q) if s.prio else 0, -q.max_new))
        elif s.policy == "lpm" and len(w) > LPM_MAX_QUEUE:
            pass
        else:
            late, queued = set(), Tree()
            for q in w:
                s.match(q)
                if q.prefix <= CHECK_BELOW:
                    n = max(q.fill - 1, 0)
                    if queued.walk(q.tok, n)[1] >= DEPRIORITIZE_FROM:
                        late.add(q.id)
                    else:
                        queued.insert(q.tok, n)
            if s.policy == "lpm":
                w.sort(key=lambda q: float("inf") if q.id in late else -q.prefix)
            else:
                s.waiting = s.depth_first(w)

    def depth_first(s, w):
        at = defaultdict(list)
        for q in w:
            at[q.node].append(q)
        weight, order = {}, [s.tree.root]
        for x in order:  # parents before children
            order.extend(x.kids.values())
        for x in reversed(order):
            weight[x] = len(at[x]) + sum(weight[k] for k in x.kids.values())
        out, stack = [], [(s.tree.root, False)]
        while stack:
            x, below_done = stack.pop()
            if below_done:
                out.extend(at[x])  # a node's own requests after those of its children
            else:
                stack.append((x, True))
                stack.extend((k, False) for k in reversed(sorted(x.kids.values(), key=lambda k: -weight[k])))
        return out

    # -- one turn: what to run next --
    def next_batch(s):
        exclude = []
        if s.chunked:
            exclude.append(s.chunked)
            s.cache_partial(s.chunked)
            s.rows += 1
        last = s.last
        if last and last.mode != "decode":
            if last.chunked:
                exclude.append(last.chunked)
            n = len(last.reqs)
            last.drop_finished(exclude)
            if len(last.reqs) < n:
                s.running.full = False
            if last.reqs:
                if not s.running.reqs:
                    s.running = last  # with its own full flag (False)
                else:
                    s.running.merge(last)
        b = s.prefill_batch()
        if b is None and s.running.reqs:
            s.decode_batch()
            b = s.running if s.running.reqs else None
        return b

    def decode_batch(s):
        b = s.running
        n0 = len(b.reqs)
        b.drop_finished()
        if not b.reqs:
            b.full = False
            return
        s.make_room(len(b.reqs))
        if s.avail < len(b.reqs):
            s.retract(b)
        else:
            s.ratio = max(s.ratio - s.decay, s.ratio_min)
        if len(b.reqs) < n0:
            b.full = False
        s.advance(b)

    def advance(s, b):
        b.mode, b.slots = "decode", len(b.reqs)
        b.lens = [n + 1 for n in b.lens]
        s.alloc(len(b.reqs))

    def retract(s, b):
        order = sorted(range(len(b.reqs)), key=lambda i: (b.reqs[i].nout, -b.reqs[i].P), reverse=True)
        gone = []
        while True:
            if gone:
                s.make_room(len(order))
                if s.avail >= len(order):
                    break
            if len(order) == 1:
                if s.avail <= 0:
                    raise Refused("no slot left for the only request")
                break
            i = order.pop()
            gone.append(b.reqs[i])
            s.release(b, i, len(order))
        b.keep(order)  # the survivors stay in this order
        s.ratio = min(
            1.0, (sum(q.nout for q in b.reqs) + RETRACT_STEPS * len(b.reqs)) / sum(q.max_new for q in b.reqs)
        )
        for q in gone:
            s.enter(q, back=True)

    def prefill_batch(s):
        if s.prio:
            s.running.full = False
        if (s.running.full or not s.waiting) and not s.chunked:
            return None
        if s.c["max_running_requests"] <= len(s.running.reqs) and not s.chunked and not s.prio:
            s.running.full = True
            return None
        s.order_queue()
        add = Adder(s)
        if s.chunked:
            s.chunked = add.continue_chunked(s.chunked)
        for q in s.waiting:
            if len(add.reqs) >= s.c["max_running_requests"] - (len(s.running.reqs) - len(add.preempted)):
                s.running.full = True
            if s.running.full and not (s.prio and add.preempt_for(q)):
                break
            s.match(q)
            q.ext = q.fill - q.prefix
            res = add.try_add(q)
            if res != "more":
                if res == "no_token":
                    s.running.full = True
                break
        if not add.reqs:
            return None  # preempted requests, if any, are lost here
        s.waiting = [q for q in s.waiting if q not in add.reqs]
        for q in add.preempted:
            s.enter(q)
        if add.new_chunked:
            if s.chunked:
                raise Refused("second chunked request")
            s.chunked = add.new_chunked
        if s.chunked:
            s.chunked.chunks += 1
        b = Batch(add.reqs)
        b.chunked, b.mode = s.chunked, "extend"
        s.launch_extend(b)
        if s.mixed and s.running.reqs:
            old = s.running
            old.drop_finished()
            if old.reqs:
                s.advance(old)
                for q in old.reqs:
                    q.fill, q.ext = len(q.tok), 1
                b.merge(old)
                b.mode, b.decoding, b.slots = "mixed", old.reqs, b.slots + old.slots
            s.running = Batch(full=old.full)
        return b

    def launch_extend(s, b):
        if len(b.reqs) > s.rows:
            raise Refused("no request slot left")
        s.rows -= len(b.reqs)
        for q in b.reqs:
            if q.fill - q.prefix != q.ext:
                raise Refused(f"extend length {q.ext} of {q.id}")
            q.retracted = False
            b.pre.append(q.prefix), b.ext.append(q.ext), b.lens.append(q.fill)
            b.slots += max(q.ext, 0)
        s.alloc(b.slots)

    # -- results --
    def process(s, b, overlap):
        """Results of a batch (with overlap: while the next one already runs). -> requests that got a
        token, that finished"""
        got, fin, freed = [], [], 0
        decoding = set(b.decoding or ())
        for i, q in enumerate(b.reqs):
            if q.retracted:
                continue
            if b.mode == "decode":
                if overlap and q.done:
                    freed += 1  # the step it rode along for nothing
                    continue
            else:
                if s.mixed and overlap and q.done:
                    j = b.slots - len(b.reqs) + i
                    s.avail += len(range(b.slots)[j : j + 1])
                    continue
                if q.chunks > 0:
                    q.chunks -= 1
                    continue
            q.tok.append(q.obase + q.nout)
            q.nout += 1
            got.append(q)
            if not q.done and q.nout >= q.max_new:
                q.done = True
                fin.append(q)
            if q.done:
                s.cache_finished(q)
            elif b.mode != "decode" and q not in decoding:
                s.cache_partial(q)  # from now on others can match it
        s.avail += freed
        return got, fin


class Adder:
    """Budgets of one prefill batch."""

    def __init__(a, s):
        a.s, a.reqs, a.preempted, a.new_chunked, a.states = s, [], [], None, None
        mixed = len(s.running.reqs) if s.mixed else 0
        a.rem_input = s.c["max_prefill_tokens"] - mixed
        a.rem_chunk = None if s.chunk is None else s.chunk - mixed
        a.total_used = mixed + sum([a.expected(q) for q in s.running.reqs])
        a.cur_used = mixed

    def expected(a, q):
        return min(q.max_new - q.nout, CLIP) * a.s.ratio

    rem_total = property(lambda a: a.s.avail + a.s.tree.evictable - a.total_used)
    rem_cur = property(lambda a: a.s.avail + a.s.tree.evictable - a.cur_used)

    def state(a):
        if a.rem_total <= 0 or a.rem_cur <= 0:
            return "no_token"
        if a.rem_input <= 0 or (a.rem_chunk is not None and a.rem_chunk <= 0):
            return "other"
        return "more"

    def charge(a, q, n, reserve):
        a.reqs.append(q)
        a.total_used += n + reserve
        a.cur_used += n
        a.rem_input -= n
        if a.rem_chunk is not None:
            a.rem_chunk -= n

    def continue_chunked(a, q):
        """-> the request while it is unfinished"""
        q.fill = len(q.tok)
        q.ext = q.fill - q.prefix
        room = min(a.rem_chunk, int(a.rem_total))  # may be 0 or negative
        cut = q.ext > room
        a.cut_to(q, min(q.ext, room))
        a.charge(q, q.ext, 0 if cut else q.reserve)
        return q if cut else None

    @staticmethod
    def cut_to(q, n):
        q.ext = n
        q.fill = len(range(q.fill)[: q.prefix + n])

    def try_add(a, q):
        if not a.s.radix:
            res = a.fits_ignore_eos(q)
            if res != "more":
                return res
        else:
            tree, need = a.s.tree, q.ext + q.reserve
            if need >= a.rem_total:
                return "no_token"
            if q.ext >= a.rem_input and a.reqs:
                return "other"
            tree.lock(q.node)  # its tokens are no longer evictable: ask again
            if need >= a.rem_total:
                tree.unlock(q.node)
                return "no_token"
        if a.rem_chunk is None or q.ext <= a.rem_chunk:
            a.charge(q, q.ext, q.reserve)
        elif a.rem_chunk == 0 or (a.s.radix and a.rem_chunk < 0):
            a.s.radix and a.s.tree.unlock(q.node)
            return "other"
        else:
            a.cut_to(q, a.rem_chunk)
            a.new_chunked = q
            a.charge(q, q.ext, 0)
        return a.state()

    def fits_ignore_eos(a, q):
        """Radix cache off: does everybody's known rest fit, if memory returns as requests finish in the
        order of tokens left?"""
        if q.ext > min(a.rem_cur, a.rem_total):
            return "no_token"
        left = lambda r: (r.max_new - r.nout, len(r.tok))
        if a.states is None:
            a.states = sorted(
                (left(r) for r in [q] + a.s.running.reqs + a.reqs if r.max_new > r.nout), key=lambda x: x[0]
            )
        elif q.max_new > q.nout:
            x = left(q)
            i = next(
                (i for i, y in enumerate(a.states) if x[0] <= y[0]), max(len(a.states) - 1, 0)
            )  # largest: before the last, not after
            a.states.insert(i, x)
        cur, freed = a.rem_cur - q.ext, 0
        for i, (n, held) in enumerate(a.states):
            alive = len(a.states) - i
            if cur + freed - n * alive <= alive:
                return "no_token"
            freed += held
        return "more"

    def preempt_for(a, q):
        """Priority preemption: all running requests that are worse by more than the threshold go, if that
        is enough."""
        s = a.s
        missing = q.ext + q.reserve - a.rem_total  # q.ext: of an earlier attempt, else 0
        worse = [
            r
            for r in sorted(s.running.reqs, key=lambda r: (-s.sign * r.prio, -r.entered))
            if r not in a.preempted and s.sign * (r.prio - q.prio) > s.c["priority_preemption_threshold"]
        ]
        for r in worse:
            missing -= a.expected(r)
        if not worse or missing > 0:
            return False
        keep, b, n = [], s.running, 0
        victims = [r for r in b.reqs if r in worse]
        for i, r in enumerate(b.reqs):
            if r in worse:
                a.total_used -= a.expected(q)  # q's, not r's
                n += 1
                s.release(b, i, len(b.reqs) - n)
            else:
                keep.append(i)
        b.keep(keep)
        a.preempted += victims
        return True


# ---- virtual clock ----------------------------------------
def run(cfg, reqs, sink):
    c = {**DEFAULTS, **cfg}
    s, k, overlap = Sched(c), c["clock"], c["overlap"]
    pend = sorted(((r["t"], i, r) for i, r in enumerate(reqs)), reverse=True)
    times, fin_t = {r["id"]: [] for r in reqs}, {}
    now = step = gpu_free = empty = 0
    prev = None

    def finish(b, rec):
        nonlocal now
        now = max(now, rec["end"])
        got, fin = s.process(b, overlap)
        rec["out"], rec["fin"] = [q.id for q in got], [q.id for q in fin]
        for q in got:
            times[q.id].append(now)
        for q in fin:
            fin_t[q.id] = now
        rec["avail_end"], rec["evictable_end"] = s.avail, s.tree.evictable
        sink(rec)

    while True:
        while pend and pend[-1][0] <= now:
            r = pend.pop()[2]
            s.enter(Req(r, r["prio"]))
        s.returned = []
        b = s.next_batch()
        if b is not None:
            sched, pf, dc, kv = [], 0, 0, 0
            for i, q in enumerate(b.reqs):
                if b.mode == "decode" or (b.decoding and i >= len(b.pre)):
                    dc, kv = dc + 1, kv + b.lens[i]
                    sched.append([q.id, "decode", b.lens[i] - 1, 1])
                else:
                    pf, kv = pf + b.ext[i], kv + b.pre[i] + b.ext[i]
                    sched.append([q.id, "chunk" if q.chunks > 0 else "prefill", b.pre[i], b.ext[i]])
            start = max(now, gpu_free)
            gpu_free = start + k["a"] + k["b"] * pf + k["c"] * len(b.reqs) + k["d"] * kv + k.get("e", 0) * dc
            rec = dict(
                step=step,
                ts=now,
                start=start,
                end=gpu_free,
                mode=b.mode,
                sched=sched,
                wait=[q.id for q in s.waiting],
                run=[q.id for q in s.running.reqs],
                chunked=s.chunked.id if s.chunked else None,
                full=s.running.full,
                ratio=round(s.ratio, 9),
                avail=s.avail,
                evictable=s.tree.evictable,
                pf=pf,
                dc=dc,
                kv=kv,
            )
            if s.returned:
                rec["retract"] = s.returned
            step += 1
        if not overlap:
            if b is not None:
                finish(b, rec)
        else:
            cur = None
            if b is not None:
                snap = Batch(b.reqs)  # the batch itself may change before its results are here
                snap.mode, snap.decoding, snap.slots = b.mode, b.decoding, b.slots
                cur = (snap, rec)
            idle, done, prev = prev is None, prev, cur
            if done:
                finish(*done)
        if b is None and (not overlap or idle):
            s.ratio = s.ratio0
        s.last = b
        empty = 0 if b is not None else empty + 1
        if b is None and (not overlap or prev is None):
            if empty < 3 and (s.waiting or s.running.reqs or s.chunked):
                continue
            if pend:
                now = max(now, pend[-1][0])
                continue
            if not (s.waiting or s.running.reqs or s.chunked):
                break
            raise Refused(f"stuck: {len(s.waiting)} waiting, {len(s.running.reqs)} running")
        if step >= c["max_steps"]:
            break
    return dict(
        requests={
            r["id"]: dict(
                arrive=r["t"],
                first=(times[r["id"]] or [None])[0],
                fin=fin_t.get(r["id"]),
                ntok=len(times[r["id"]]),
            )
            for r in reqs
        },
        steps=step,
    )


dump = lambda x: json.dumps(x, separators=(",", ":"))


def check(stem):
    lines, summ, err = [], None, ""
    t0 = time.time()
    try:
        summ = run(
            json.load(open(stem + ".json")), load_trace(stem + ".csv"), lambda r: lines.append(dump(r))
        )
    except Refused as ex:
        err = f"{type(ex).__name__}: {ex}"
    dt = time.time() - t0
    gold = open(stem + ".jsonl").read().splitlines()
    want = json.loads(gold.pop())["summary"] if gold and gold[-1].startswith('{"summary"') else None
    n = next((i for i, (x, y) in enumerate(zip(lines, gold, strict=False)) if x != y), None)
    same = n is None and len(lines) == len(gold) and want == summ
    print(
        f"{os.path.basename(stem):32s} {'OK  ' if same else 'DIFF'} {len(lines):5d}/{len(gold):5d} "
        f"records {dt:6.2f}s {err}",
        flush=True,
    )
    if not same and n is not None:
        print("   ref :", lines[n][:900]), print("   gold:", gold[n][:900])
    return same


def main():
    ap = argparse.ArgumentParser()
    for x in ("--check", "--config", "--trace", "--out"):
        ap.add_argument(x)
    a = ap.parse_args()
    if a.config:
        with open(a.out or "/dev/stdout", "w") as f:
            summ = run(json.load(open(a.config)), load_trace(a.trace), lambda r: f.write(dump(r) + "\n"))
            f.write(dump(dict(summary=summ)) + "\n")
        return
    res = [check(c[:-5]) for c in sorted(glob.glob(os.path.join(a.check, "*.json")))]
    print(f"{sum(res)} of {len(res)} equal")
    sys.exit(not all(res))


if __name__ == "__main__":
    main()
