"""A slow, dependency-free restatement of the vLLM V1 scheduler: the oracle of the differential tests.

It restates what the real scheduler (`vllm/v1/core/sched/scheduler.py`, `vllm/v1/core/block_pool.py`) was seen
to do when driven with a mock model on an integer clock, for full attention with one KV cache group, versions
0.11 to 0.32. It reproduces every log under `tests/golden` byte for byte, with speculative decoding, pipeline
stages and prefill-decode disaggregation.

    ref_sched.py --check DIR                                   compare with DIR/NAME.{json,csv,jsonl}
    ref_sched.py --config C.json --trace T.csv --out L.jsonl   write a log

`tests/golden/README.md` describes the three formats. Names are short because the rules are long: `s` is the
object itself in `Pool` and `Sched`, `q` a request, `c` the configuration, `n` a number of tokens, `k` the
drafts per step.
"""

# ruff: noqa: C408, N805, N806, PLR0915, PLR0917, SIM300

import argparse
import bisect
import csv
import heapq
import json
import sys
import time
from collections import OrderedDict
from pathlib import Path

MASK = (1 << 64) - 1


def splitmix64(x):
    """One step of the splitmix64 generator from state `x`."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def draw(seed, req_index, pos, salt=0):
    """A number in [0, 1000): splitmix64 chained over (seed, request index, output position, salt)."""
    h = splitmix64(seed)
    h = splitmix64(h ^ req_index)
    h = splitmix64(h ^ pos)
    h = splitmix64(h ^ salt)
    return h % 1000


DEFAULTS = dict(
    block_size=16,
    max_model_len=8192,
    max_num_batched_tokens=2048,
    max_num_scheduled_tokens=None,
    max_num_seqs=128,
    max_num_active_seqs=None,
    long_prefill_token_threshold=0,
    long_prefill_token_threshold_adaptive=False,
    enable_chunked_prefill=True,
    enable_prefix_caching=True,
    policy="fcfs",
    scheduler_reserve_full_isl=True,
    watermark=0.0,
    async_scheduling=False,
    pipeline_parallel_size=1,
    v2_runner=True,
    spec=None,
    log_block_ids=False,
    max_steps=20000,
    clock=dict(a=5_000_000, b=50_000, c=100_000, d=100, e=50_000),
)


def load_trace(path):
    """Read a trace file; see `parse_trace`."""
    with open(path, newline="") as f:
        return parse_trace(f)


def parse_trace(lines):
    """Read CSV lines into requests, in file order.

    A token is the integer `stream * 10_000_000 + position`, so prompts share a prefix exactly as far as their
    (stream, position) pairs agree; `obase` is where the request's own output stream begins.
    """
    rows = list(csv.DictReader(lines))
    streams, reqs = {}, []

    def sid(name):
        return streams.setdefault(name, len(streams) + 1)

    for i, r in enumerate(rows):
        toks = []
        for segment in r["prompt"].split("|"):
            seg, start = segment, 0
            if "@" in seg:
                seg, st = seg.rsplit("@", 1)
                start = int(st)
            name, n = seg.rsplit(":", 1)
            base = sid(name) * 10_000_000
            toks += [base + start + k for k in range(int(n))]
        reqs.append(
            dict(
                id=r["request_id"],
                idx=i,
                t=int(r["arrival_ns"]),
                prompt=toks,
                out=int(r["output_len"]),
                prio=int(r.get("priority") or 0),
            )
        )
    for r in reqs:
        r["obase"] = sid("o:" + r["id"]) * 10_000_000
    return reqs


def cdiv(a, b):
    return -(-a // b)


def rules(version):
    """Names of the scheduling rules that a vLLM version (major, minor) follows."""
    first = dict(  # rule -> first minor version 0.N that has it
        # chunking off: stop at a prompt over the budget (before: skip it, and skipped ones return in reverse)
        stop_at_unchunked=12,
        keep_victim_budget=12,
        draft_model_lookahead=15,
        no_drafts_in_chunk=16,
        max_scheduled_tokens=17,  # 0.17 itself could not be run
        reserve_full_isl=19,
        lookahead_at_admission=23,  # before: a request without computed tokens gets no lookahead slots
        v2_runner=23,
        unhashed_first=24,
        watermark=24,
        spec_pad=25,  # pad a just-admitted request with drafts
        draft_slots=28,
        pad_alone=30,  # ... also when nothing else runs
        reserve_for_loads=30,  # decode side of P/D
        defer_frees=30,  # decode side of P/D
        threshold_not_for_one=31,
        max_active_seqs=31,
        kv_queue=31,  # requests that hold KV wait in a queue of their own (logged as kv_wait)
    )
    return {k for k, n in first.items() if version >= (0, n)}


class Pool:
    """Block pool. The free queue is in eviction order (taken from the front); block 0 is the null block."""

    def __init__(s, n, caching, unhashed_first=True):
        s.n, s.caching, s.unhashed_first = n, caching, unhashed_first
        s.free = OrderedDict((i, None) for i in range(1, n))
        s.ref = [0] * n
        s.hash = [None] * n
        s.cached = {}  # hash -> insertion-ordered {block: None}

    def lookup(s, h):
        d = s.cached.get(h)
        return next(iter(d)) if d else None

    def take(s, k):
        out = []
        for _ in range(k):
            b, _ = s.free.popitem(last=False)
            if s.hash[b] is not None:  # eviction happens lazily, at re-allocation
                d = s.cached[s.hash[b]]
                del d[b]
                if not d:
                    del s.cached[s.hash[b]]
                s.hash[b] = None
            s.ref[b] = 1
            out.append(b)
        return out

    def touch(s, blocks):
        for b in blocks:
            if s.ref[b] == 0:
                del s.free[b]
            s.ref[b] += 1

    def release(s, blocks_reversed):
        first, last = [], []
        for b in blocks_reversed:
            s.ref[b] -= 1
            if s.ref[b] == 0:
                (first if s.unhashed_first and not (s.caching and s.hash[b] is not None) else last).append(b)
        for b in reversed(first):  # un-hashed blocks go to the FRONT, keeping tail-block-first order
            s.free[b] = None
            s.free.move_to_end(b, last=False)
        for b in last:  # hashed blocks go to the BACK (LRU), tail block first
            s.free[b] = None


class Req:
    """A request: `tok` prompt and output, `P` prompt length, `C` computed tokens, `ph` placeholders."""

    def __init__(q, rid, toks, max_tokens, prio, arrival, kv=None):
        q.id, q.tok, q.P = rid, list(toks), len(toks)
        q.max_tokens, q.prio, q.arrival = max_tokens, prio, arrival
        q.status, q.C, q.spec, q.ph, q.stale, q.inflight, q.npre = "WAITING", 0, [], 0, 0, 0, 0
        q.chunk, q.elig, q.blocks, q.ncached, q.hashes, q.kv, q.done = False, 0, [], 0, [], kv, False
        q.seq = 0

    N = property(lambda q: len(q.tok))
    key = property(lambda q: (q.prio, q.arrival, q.id))


class Sched:
    """The scheduler without a clock: `schedule()` picks a batch, `update()` takes its output tokens."""

    def __init__(s, c):
        s.c = c
        s.bs = c["block_size"]
        v = tuple(int(x) for x in c.get("vllm", "0.32").split(".")[:2])
        s.rules = rules(v)
        caching = c["enable_prefix_caching"]
        unhashed_first = "unhashed_first" in s.rules and not (v == (0, 27) and not caching)
        s.pool = Pool(c["num_blocks"], caching, unhashed_first)
        s.running, s.waiting, s.kvq, s.reqs = [], [], [], {}
        s.prio = c["policy"] == "priority"
        sp = c["spec"]
        s.k = sp["k"] if sp else 0
        m = sp["method"] if sp else None
        s.eagle = m == "eagle"
        s.look = s.k if m == "eagle" or (m == "draft_model" and "draft_model_lookahead" in s.rules) else 0
        s.draft_slots = 1 if m == "draft_model" and "draft_slots" in s.rules else 0
        s.asy, s.pp = c["async_scheduling"], c["pipeline_parallel_size"]
        s.v2 = c["v2_runner"] and "v2_runner" in s.rules
        s.depth = (s.pp + 1 if s.v2 else (2 if s.pp == 1 else s.pp)) if s.asy else s.pp
        s.wm = int(c["watermark"] * c["num_blocks"]) if "watermark" in s.rules else 0
        s.maxtok = c["max_num_scheduled_tokens"] if "max_scheduled_tokens" in s.rules else None
        s.maxtok = s.maxtok or c["max_num_batched_tokens"]
        s.maxact = c["max_num_active_seqs"] if "max_active_seqs" in s.rules else None
        s.maxact = s.maxact or c["max_num_seqs"]
        s.step = 0
        s.intern = {}
        s.role = None
        s.inflight_prefill = set()
        s.recv_done = set()
        s.newly_finished = False
        s.defer, s.seqno, s.done_seq, s.defq = False, 0, 0, []

    def push(s, q, front=False):
        if s.prio:
            bisect.insort(s.waiting, q, key=lambda r: r.key)
        elif front:
            s.waiting.insert(0, q)
        else:
            s.waiting.append(q)

    def rehash(s, q):
        while (len(q.hashes) + 1) * s.bs <= q.N:
            i = len(q.hashes)
            k = (q.hashes[-1] if i else -1, tuple(q.tok[i * s.bs : (i + 1) * s.bs]))
            q.hashes.append(s.intern.setdefault(k, len(s.intern)))

    def cache(s, q, ntok):
        if not s.pool.caching:
            return
        full = ntok // s.bs
        for i in range(q.ncached, full):
            b, h = q.blocks[i], q.hashes[i]
            assert s.pool.hash[b] is None
            s.pool.hash[b] = h
            s.pool.cached.setdefault(h, {})[b] = None
        q.ncached = max(q.ncached, full)

    def find_hit(s, q):
        if not s.pool.caching:
            return [], 0
        hit = []
        for h in q.hashes[: (q.N - 1) // s.bs]:  # at least one token is always recomputed
            b = s.pool.lookup(h)
            if b is None:
                break
            hit.append(b)
        if s.eagle and hit:
            hit.pop()  # EAGLE/MTP: the last matching block is dropped
        return hit, len(hit) * s.bs

    def need(s, q, ntok, hit):
        return max(cdiv(ntok, s.bs) - len(q.blocks) - len(hit), 0) + sum(s.pool.ref[b] == 0 for b in hit)

    def alloc(s, q, n, hit=(), look=0, ext=0, admit=False, delay=False, reserved=0):
        """Get blocks for n tokens after q.C + hit + ext computed ones; `admit`: by the admission rules."""
        wm = s.wm if admit and s.running else 0
        mml = s.c["max_model_len"]
        if (
            admit
            and s.c["scheduler_reserve_full_isl"]
            and "reserve_full_isl" in s.rules
            and s.need(q, min(q.N, mml), hit) + wm > len(s.pool.free)
        ):
            return False
        total = min(q.C + len(hit) * s.bs + ext, mml)
        slots = min(total + n + look, mml)
        if s.need(q, slots, hit) + wm > len(s.pool.free) - reserved:
            return False
        s.pool.touch(hit)
        q.blocks += hit
        q.ncached = max(q.ncached, len(hit))
        if ext:
            q.blocks += s.pool.take(max(cdiv(total, s.bs) - len(q.blocks), 0))
        q.blocks += s.pool.take(max(cdiv(slots, s.bs) - len(q.blocks), 0))
        if not delay:
            s.cache(q, min(total + n, q.N))
        return True

    def can_free_now(s, q):
        return not s.defer or q.seq <= s.done_seq

    def free(s, q):
        b, q.blocks, q.ncached = q.blocks, [], 0
        if s.can_free_now(q):
            s.pool.release(reversed(b))
        elif b:
            s.defq.append((s.seqno, b))

    def preempt(s, q):
        s.free(q)
        s.inflight_prefill.discard(q)
        q.status, q.C, q.spec, q.stale, q.ph = "PREEMPTED", 0, [], q.inflight, 0
        q.npre += 1
        s.push(q, front=True)

    def has_requests(s):
        return bool(
            s.running
            or s.waiting
            or s.kvq
            or s.newly_finished
            or (s.role and len(s.reqs) > len(s.running) + len(s.waiting) + len(s.kvq))
        )

    def reserved_blocks(s):
        r = 0
        for q in s.inflight_prefill:
            n = min(q.N, s.c["max_model_len"]) + ((1 + s.k + s.look) if s.k else 0)
            r += max(cdiv(n, s.bs) - len(q.blocks), 0)
        return r

    def schedule(s):
        c = s.c
        s.step += 1
        budget, inb, ds = s.maxtok, c["max_num_batched_tokens"], s.draft_slots
        mml = c["max_model_len"]
        pre, xfer = [], []
        sched_running, prefill_scheduled = [], False
        nelig = len(s.running) + len(s.waiting) + len(s.kvq)
        newthr = "threshold_not_for_one" in s.rules
        thr = c["long_prefill_token_threshold"] if nelig > 1 or not newthr else 0
        if thr and newthr and c["long_prefill_token_threshold_adaptive"]:
            thr = max(thr, inb // nelig)
        res = {}  # ordered: req -> (n, spec)
        i = 0
        while i < len(s.running) and budget > 0:  # phase 1: RUNNING, in admission order
            q = s.running[i]
            if inb <= ds:
                break
            if q.ph > 0 and q.C + 2 - q.ph >= q.P + q.max_tokens:
                i += 1
                continue
            if s.step < q.elig:
                i += 1
                continue
            n = q.N + len(q.spec) + q.ph - q.C
            if 0 < thr < n:
                n = thr
            n = max(min(n, budget, inb - ds, mml - q.C - 1), 0)
            if n == 0:
                i += 1
                continue
            ok = True
            while not s.alloc(q, n, look=s.look):
                victim = max(s.running, key=lambda r: (r.prio, r.arrival)) if s.prio else s.running[-1]
                if not s.can_free_now(victim):
                    ok = False
                    break
                vi = s.running.index(victim)
                del s.running[vi]
                if s.prio:
                    if vi < i and "keep_victim_budget" in s.rules:
                        i -= 1
                    if victim in res:  # already scheduled in this very step: give its budget back
                        i -= "keep_victim_budget" not in s.rules
                        vn, _ = res.pop(victim)
                        sched_running.remove(victim)
                        budget += vn
                        inb += vn + ds
                s.preempt(victim)
                pre.append(victim)
                if victim is q:
                    ok = False
                    break
            if not ok:
                break
            prefill_scheduled |= q.chunk
            sched_running.append(q)
            budget -= n
            inb -= n + ds
            i += 1
            spec = []
            if q.spec:
                ns = n + q.C - q.N - q.ph
                if ns > 0:
                    spec = q.spec[:ns]
                q.spec = []
            res[q] = (n, spec)
        kinds = dict.fromkeys(res, "run")
        if not pre:  # phase 2: WAITING, only if nothing was preempted
            skipped_kv, skipped = [], []
            while budget > 0:
                src = s.kvq or s.waiting
                if not src or inb <= ds or len(s.running) >= s.maxact:
                    break
                q = src[0]
                if q.status == "WAITING_FOR_REMOTE_KVS":
                    if q.id not in s.recv_done:
                        skipped_kv.append(src.pop(0))
                        continue
                    s.recv_done.discard(q.id)
                    s.cache(q, q.C)
                    if q.C == q.N:
                        q.C -= 1  # last prompt token is recomputed to get logits
                    q.status = "PREEMPTED" if q.npre else "WAITING"
                if q.stale:
                    skipped.append(src.pop(0))
                    continue
                hit, ext, ahead = [], 0, False
                C = q.C
                if q.C == 0:
                    hit, C = s.find_hit(q)
                    if q.kv and q.kv.get("do_remote_prefill"):
                        ext = q.P - C
                        ahead = ext > 0
                    C += ext
                pad = False
                if ahead:
                    n = 0
                else:
                    rb = min(budget, inb - ds)
                    n = q.N - C
                    if (
                        s.k
                        and "spec_pad" in s.rules
                        and n == 1
                        and not prefill_scheduled
                        and (sched_running or (C > 0 and "pad_alone" in s.rules))
                        and C + 1 + s.k + 1 <= mml
                    ):
                        if 1 + s.k > rb:
                            break
                        n, pad = 1 + s.k, True
                    if 0 < thr < n:
                        n = thr
                    if not c["enable_chunked_prefill"] and n > rb:
                        if "stop_at_unchunked" not in s.rules:
                            skipped.insert(
                                0, src.pop(0)
                            )  # old bug: skipped requests come back in reverse order
                            continue
                        break
                    n = min(n, rb)
                resv = (
                    s.reserved_blocks() + (cdiv(1 + s.k + s.look, s.bs) if s.k else 0)
                    if ahead and "reserve_for_loads" in s.rules
                    else 0
                )
                look = 0 if ahead or (q.C == 0 and "lookahead_at_admission" not in s.rules) else s.look
                if not s.alloc(q, n, hit, look=look, ext=ext, admit=True, delay=ahead, reserved=resv):
                    break
                if q.kv and q.kv.get("do_remote_prefill"):
                    q.kv["do_remote_prefill"] = False
                    xfer.append((q, len(q.blocks) - len(hit)))
                src.pop(0)
                if ahead:
                    q.status, q.C = "WAITING_FOR_REMOTE_KVS", C
                    s.inflight_prefill.add(q)
                    skipped_kv.append(q)
                    continue
                kinds[q] = "new" if q.npre == 0 else "resumed"
                s.running.append(q)
                q.status, q.C = "RUNNING", C
                res[q] = (n, [-1] * s.k if pad else [])
                budget -= n
                inb -= n + ds
                if C + n < q.N:
                    s.inflight_prefill.add(q)
            s.kvq[:0] = skipped_kv
            if s.prio:
                s.kvq.sort(key=lambda r: r.key)
            if s.prio:
                for q in skipped:
                    s.push(q)
            else:
                s.waiting[:0] = skipped
        if s.defer and res:
            s.seqno += 1
        for q, (n, spec) in res.items():  # counters advance at schedule time, not at completion
            q.C += n
            q.inflight += n
            q.seq = s.seqno
            q.chunk = q.C < q.N + q.ph
            if not q.chunk:
                s.inflight_prefill.discard(q)
                if s.asy:
                    q.ph += 1 + len(spec)
                    q.spec = [-1] * s.k
                    if s.v2:
                        q.elig = s.step + s.pp
        s.newly_finished = False
        return res, kinds, pre, xfer

    def update(s, res, toks, recv, sent):
        if s.defer and res:
            s.done_seq += 1
            while s.defq and s.defq[0][0] <= s.done_seq:
                s.pool.release(reversed(s.defq.pop(0)[1]))
        gen, fin = {}, []
        stop_run, stop_wait = [], []
        for q, (n, spec) in res.items():
            q.inflight -= n
            stale = q.stale > 0
            if stale:
                q.stale -= n
            if q.done:
                continue
            t = toks[q]
            if spec and t:
                rej = len(spec) - (len(t) - 1)
                if not stale:
                    if q.C > 0:
                        q.C -= rej
                    if q.ph > 0:
                        q.ph -= rej
            st0, used, stopped = q.status, 0, False
            for x in t:
                q.tok.append(x)
                s.rehash(q)
                used += 1
                if q.N >= s.c["max_model_len"] or q.N - q.P >= q.max_tokens:
                    stopped = True
                    break
            if t and s.asy:
                if not stale:
                    q.ph -= used
                if st0 == "RUNNING":
                    s.cache(q, q.C - q.ph)
            if used:
                gen[q.id] = used
            if stopped:
                fin.append(q)
                q.done = True
                s.inflight_prefill.discard(q)
                s.newly_finished = True
                if not (q.kv and q.kv.get("do_remote_decode")):  # P side: blocks wait for the transfer
                    s.free(q)
                    del s.reqs[q.id]
                (stop_run if st0 == "RUNNING" else stop_wait).append(q)
        s.running = [q for q in s.running if q not in stop_run]
        s.waiting = [q for q in s.waiting if q not in stop_wait]
        for rid in recv:
            s.recv_done.add(rid)
        for rid in sent:
            q = s.reqs.pop(rid)
            s.free(q)
        return gen, fin


class RefEngine:
    """One engine core: `EngineCore.step()` and `step_with_batch_queue()` on a virtual clock."""

    def __init__(self, cfg, name="", kv_role=None, sink=None):
        c = dict(DEFAULTS)
        c.update(cfg)
        self.cfg, self.name, self.sink, self.spec = c, name, sink, c["spec"]
        self.s = Sched(c)
        self.s.role = kv_role
        self.depth = self.s.depth
        self.s.defer = self.depth > 1 and kv_role == "kv_consumer" and "defer_frees" in self.s.rules
        self.inbox, self.meta = [], {}
        self.seq = self.step_no = self.empty_steps = 0
        self.stage_free = [0] * c["pipeline_parallel_size"]
        self.queue, self.kv_done, self.on_finish, self.last_nblk = [], [], None, {}

    def submit(self, t, r, max_tokens=None, kv_params=None, rid=None):
        q = Req(r["id"], r["prompt"], max_tokens or r["out"], r["prio"], t / 1e9, kv_params)
        self.s.rehash(q)
        self.seq += 1
        heapq.heappush(self.inbox, (t, self.seq, q))
        self.meta[q.id] = dict(r=r, tok_t=[], cached=None, npre=0, arrive=t)

    def drain_inputs(self, now):
        while self.inbox and self.inbox[0][0] <= now:
            q = heapq.heappop(self.inbox)[2]
            self.s.reqs[q.id] = q
            self.s.push(q)

    def schedule(self, now):
        s = self.s
        held = {q.id: len(q.blocks) for q in s.reqs.values() if q.status == "RUNNING"}
        res, kinds, pre, xfer = s.schedule()
        pf = dc = kv = 0
        recs, hit, smp = [], {}, {}
        for q, (n, spec) in res.items():
            before = q.C - n
            if kinds[q] != "run":
                hit[q.id] = before
                m = self.meta[q.id]
                if m["cached"] is None:
                    m["cached"] = before
            if before < q.P or n - len(spec) > 1:
                pf += n
            else:
                dc += n
            kv += q.C
            smp[q] = not q.chunk
            recs.append([q.id, kinds[q], before, n, len(spec)])
        k = self.cfg["clock"]
        dur = k["a"] + k["b"] * pf + k["c"] * len(res) + k["d"] * kv + k.get("e", 0) * dc if res else 0
        S, t, start = len(self.stage_free), now, None
        for i in range(S):
            st = max(t, self.stage_free[i])
            start = st if start is None else start
            t = st + cdiv(dur, S)
            self.stage_free[i] = t
        rec = None
        if res or pre:
            rec = dict(step=self.step_no, eng=self.name, ts=now, start=start, end=t, sched=recs)
            if pre:
                rec["pre"] = [q.id for q in pre]
            if hit:
                rec["hit"] = hit
            rec["run"], rec["wait"] = [q.id for q in s.running], [q.id for q in s.waiting]
            if s.kvq and "kv_queue" in s.rules:
                rec["kv_wait"] = [q.id for q in s.kvq]
            rec["free"], rec["pf"], rec["dc"], rec["kv"] = len(s.pool.free), pf, dc, kv
            if self.cfg["log_block_ids"]:
                blk = {}
                for q in res:
                    n0 = self.last_nblk.get(q.id, 0) if q.id in held else 0
                    if q.blocks[n0:]:
                        blk[q.id] = q.blocks[n0:]
                    self.last_nblk[q.id] = len(q.blocks)
                if blk:
                    rec["blk"] = blk
            if res:
                self.step_no += 1
        for q in pre:
            self.meta[q.id]["npre"] += 1
            self.last_nblk.pop(q.id, None)
        if not res:
            self.empty_steps += 1

        return dict(
            res=res,
            rec=rec,
            end=t,
            start=start,
            sampled=smp,
            kind=kinds,
            xfer=xfer,
            changed=bool(res or pre),
        )

    def update(self, b, now):
        s, toks = self.s, {}
        for q, (_, spec) in b["res"].items():
            if q.done or not b["sampled"][q]:
                toks[q] = []
                continue
            r, pos, acc = self.meta[q.id]["r"], q.N - q.P, 0
            if spec and b["kind"][q] == "run":
                while (
                    acc < len(spec)
                    and draw(self.spec["seed"], r["idx"], pos + acc, 1) < self.spec["accept_permille"]
                ):
                    acc += 1
            toks[q] = [r["obase"] + pos + j for j in range(1 + acc)]
        recv, sent = [], []
        while self.kv_done and self.kv_done[0][0] <= now:
            _, _, kind, rid = heapq.heappop(self.kv_done)
            (recv if kind == "recv" else sent).append(rid)
        gen, fin = s.update(b["res"], toks, recv, sent)
        for rid, n in gen.items():
            self.meta[rid]["tok_t"] += [now] * n
        for q in fin:
            self.meta[q.id]["fin"] = now
        if self.spec and not self.cfg["async_scheduling"]:
            for q in b["res"]:
                if q.done:
                    continue
                k = self.spec["k"]
                if self.spec.get("draft_len") == "hash":
                    k = draw(self.spec["seed"], self.meta[q.id]["r"]["idx"], q.N - q.P, 2) % (k + 1)
                q.spec = [] if q.chunk and "no_drafts_in_chunk" in s.rules else [7] * k
        rec = b["rec"]
        if rec is not None:
            if gen:
                rec["out"] = gen
            if fin:
                rec["fin"] = [q.id for q in fin]
            if recv:
                rec["recv"] = sorted(recv)
            if sent:
                rec["sent"] = sorted(sent)
            rec["free_end"] = len(s.pool.free)
            self.sink(rec)
        elif recv or sent:
            self.sink(
                dict(
                    eng=self.name,
                    ts=now,
                    kv_only=True,
                    recv=sorted(recv),
                    sent=sorted(sent),
                    free_end=len(s.pool.free),
                )
            )
        if self.on_finish:
            for q in fin:
                self.on_finish(self, q.id, now, dict(do_remote_prefill=True) if q.kv else None)
        return bool(gen or fin or recv or sent)

    def after_schedule(self, b, now):
        """Do nothing; P/D puts its transfers here, which start with the step whose metadata carries them."""

    def run(self, clock):
        """Run the main loop as a coroutine that yields ("until", time) or ("idle",)."""
        idle_guard = 0
        while True:
            self.drain_inputs(clock())
            s = self.s
            if self.depth <= 1:
                if not s.has_requests():
                    yield ("idle",)
                    continue
                b = self.schedule(clock())
                self.after_schedule(b, clock())
                if b["end"] > clock():
                    yield ("until", b["end"])
                ch = self.update(b, clock())
                if not b["changed"] and not ch:
                    idle_guard += 1
                    if idle_guard >= 2:
                        idle_guard = 0
                        yield ("idle",)
                else:
                    idle_guard = 0
                continue
            # batch-queue path (async scheduling and/or PP)
            changed = False
            if s.has_requests():
                b = self.schedule(clock())
                self.after_schedule(b, clock())
                changed = b["changed"]
                self.queue.insert(0, b)
                room = len(self.queue) < self.depth and (b["res"] or s.has_requests())
                if room and (changed or any(x["res"] for x in self.queue)):
                    continue
            elif not self.queue:
                yield ("idle",)
                continue
            b = self.queue.pop()
            if b["end"] > clock():
                yield ("until", b["end"])
            ch = self.update(b, clock())
            if not changed and not ch and not any(x["res"] for x in self.queue):
                # vLLM busy-spins on empty batches here; on the virtual clock we sleep until the next event
                idle_guard += 1
                if idle_guard >= 2:
                    idle_guard = 0
                    yield ("idle",)
            else:
                idle_guard = 0


class Sim:
    """The virtual clock, in ns."""

    def __init__(self):
        self.now = 0


def drive(engines, sim):
    """Run the engines' coroutines until nothing is left to do or one has made `max_steps` steps.

    External events (arrivals, KV completions) at time t are visible to any schedule() at time >= t; they are
    delivered before engine wake-ups of the same instant.
    """
    gens = {e.name: e.run(lambda: sim.now) for e in engines}
    byname = {e.name: e for e in engines}
    wake = {e.name: 0 for e in engines}  # time to resume, or None = idle
    order = [e.name for e in engines]
    while True:
        cand = []
        for n in order:
            e = byname[n]
            if wake[n] is not None:
                cand.append(wake[n])
            else:
                ts = [h[0][0] for h in (e.inbox, e.kv_done) if h]
                if ts:
                    cand.append(max(sim.now, min(ts)))
        if not cand or any(e.step_no >= e.cfg["max_steps"] for e in engines):
            return
        sim.now = max(sim.now, min(cand))
        for n in order:
            e = byname[n]
            due = wake[n] is not None and wake[n] <= sim.now
            if wake[n] is None:
                due = any(h and h[0][0] <= sim.now for h in (e.inbox, e.kv_done))
            if due:
                r = next(gens[n])
                wake[n] = r[1] if r[0] == "until" else None


def summarize(engines, reqs):
    """Return the last record of a log: every request's times (ns) and counts, by engine."""
    out = {}
    for e in engines:
        o = {}
        for r in reqs:
            m = e.meta.get(r["id"])
            if m is None:
                continue
            o[r["id"]] = dict(
                arrive=m["arrive"],
                first=m["tok_t"][0] if m["tok_t"] else None,
                fin=m.get("fin"),
                ntok=len(m["tok_t"]),
                cached=m["cached"],
                npre=m["npre"],
            )
        out[e.name] = dict(
            requests=o,
            steps=e.step_no,
            empty_steps=e.empty_steps,
            unfinished=[i for i, m in e.meta.items() if "fin" not in m],
        )
    return out


def run(cfg, reqs, sink):
    """Simulate `reqs` under `cfg`, hand every record to `sink`, and return the summary."""
    sim = Sim()
    if cfg.get("mode", "colocated") != "pd":
        e = RefEngine(cfg, "e0", sink=sink)
        for r in reqs:
            e.submit(r["t"], r)
        drive([e], sim)
        return summarize([e], reqs)
    pd = cfg["pd"]
    P = RefEngine({**cfg, **pd.get("prefill", {})}, "P", "kv_producer", sink)
    D = RefEngine({**cfg, **pd.get("decode", {})}, "D", "kv_consumer", sink)
    tr, byid, link = pd["transfer"], {r["id"]: r for r in reqs}, [0]
    P.on_finish = lambda e, rid, now, kvp: D.submit(
        now + pd.get("proxy_latency", 0), byid[rid], kv_params=kvp
    )

    def d_after(b, now):
        for q, nblk in b["xfer"]:
            t0 = max(now, b["start"])
            if tr.get("serial"):
                t0 = max(t0, link[0])
            t1 = t0 + (tr["alpha"] + tr["per_block"] * nblk if nblk else 0)
            if tr.get("serial"):
                link[0] = t1
            D.sink(dict(eng="D", ts=now, xfer=q.id, blocks=nblk, t0=t0, t1=t1))
            D.seq += 1
            if nblk:
                heapq.heappush(D.kv_done, (t1, D.seq, "recv", q.id))
            P.seq += 1
            heapq.heappush(P.kv_done, (t1, P.seq, "sent", q.id))

    D.after_schedule = d_after
    for r in reqs:
        P.submit(r["t"], r, max_tokens=1, kv_params={"do_remote_decode": True})
    drive([P, D], sim)
    return summarize([P, D], reqs)


def dump(record):
    """One line of a log."""
    return json.dumps(record, separators=(",", ":"))


def check(stem, vllm=None):
    """Compare the log of STEM.json and STEM.csv with STEM.jsonl; print a verdict and return whether equal."""
    cfg, lines, t0 = json.loads(Path(f"{stem}.json").read_text()), [], time.perf_counter()
    if vllm:
        cfg["vllm"] = vllm
    summary = run(cfg, load_trace(f"{stem}.csv"), lambda rec: lines.append(dump(rec)))
    seconds = time.perf_counter() - t0
    *gold, last = Path(f"{stem}.jsonl").read_text().splitlines()
    n = next((i for i, (x, y) in enumerate(zip(lines, gold, strict=False)) if x != y), None)
    same = lines == gold and json.loads(last)["summary"] == summary
    verdict = "OK" if same else "DIFF"
    print(f"{stem.name:38s} {verdict:4s} {len(lines):5d}/{len(gold):5d} records {seconds:6.2f}s", flush=True)
    if n is not None:
        print("   ref :", lines[n][:600])
        print("   gold:", gold[n][:600])
    return same


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    ap.add_argument("--vllm", help="version whose rules to follow with --check, 0.11 ... 0.32")
    ap.add_argument("--check", metavar="DIR", type=Path)
    ap.add_argument("--config", metavar="C.json", type=Path)
    ap.add_argument("--trace", metavar="T.csv", type=Path)
    ap.add_argument("--out", metavar="L.jsonl", type=Path)
    a = ap.parse_args()
    if a.check:
        results = [check(path.with_suffix(""), a.vllm) for path in sorted(a.check.glob("*.json"))]
        sys.exit(0 if results and all(results) else f"{results.count(False)} of {len(results)} cases differ")
    if not (a.config and a.trace and a.out):
        ap.error("either --check DIR, or --config, --trace and --out")
    with a.out.open("w") as f:
        summary = run(
            json.loads(a.config.read_text()), load_trace(a.trace), lambda rec: print(dump(rec), file=f)
        )
        print(dump({"summary": summary}), file=f)


if __name__ == "__main__":
    main()
