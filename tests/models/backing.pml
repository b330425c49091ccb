/* Backing above `top`, shmem/_heap/backing.pyx and shmem/_heap/heap.pyx: threads 0 and 1 allocate a page each, above `top`, and free it;
   thread 2 trims.  Each page above `reserved` may fail to be allocated, and has backing all the same, as on ext4.
   The two gates are given: their take-over is modelled in heap_gate.pml.  Up to two threads are killed, before any of their steps.

   Claims: every page below `reserved` has backing; top <= reserved; every store goes to a page with backing; no deadlock.

   Seeded errors: RESERVED_FIRST, NOT_ASKED_AGAIN, TRIM_WITHOUT_RESERVE_GATE, PUNCH_FIRST, UNDO_WITHOUT_RESERVE_GATE,
   LOWER_WITHOUT_HEAP_GATE, NO_TAKE_OVER. */

#define THREADS 3
#define N_KILLS 2
#define PAGES 3

byte heap_gate = 0;              /* the owner + 1, or 0 */
byte reserve_gate = 0;
byte top = 1;                    /* in pages */
byte reserved = 1;
bool backed[PAGES];
bool killed[THREADS];
bool ended[THREADS];

#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)
#define MORTAL unless { killed[t] }

#ifdef NO_TAKE_OVER
#define IS_FREE(gate) (gate == 0)
#else
#define IS_FREE(gate) (gate == 0 || killed[gate - 1])
#endif

inline check() {
    assert(top <= reserved && (reserved < 2 || backed[1]) && (reserved < 3 || backed[2]))
}

inline enter(gate) {
    atomic { IS_FREE(gate) -> if :: gate != 0 -> REACHED(1) :: else fi; gate = t + 1 }
}

inline leave(gate) { gate = 0 }

inline store() {                 /* in the caller's new page, which is private until it is freed */
    assert(backed[page])
}

inline place(asks) {             /* _place_above_top, under the heap gate; out: `placed`, `page`, `need` */
    atomic {
        need = top + 1;
        if
        :: need <= PAGES && (need <= reserved || !asks) -> page = top; top = need; placed = true
        :: else
        fi
    };
    check()
}

inline give_back() {             /* heap_give_back */
#ifndef LOWER_WITHOUT_HEAP_GATE
    enter(heap_gate);
#endif
#ifdef PUNCH_FIRST
    keep = top;
    off = keep;
    do :: off < PAGES -> backed[off] = false; check(); off++ :: else -> break od;
    if :: keep < reserved -> reserved = keep :: else fi;
    leave(heap_gate)
#else
    keep = top;
    if :: keep < reserved -> atomic { reserved = keep; check() } :: else fi;
#ifndef LOWER_WITHOUT_HEAP_GATE
    leave(heap_gate);
#endif
    assert(top <= keep);         /* nothing is placed above `reserved` */
    off = keep;
    do :: off < PAGES -> atomic { backed[off] = false; check() }; off++ :: else -> break od
#endif
}

inline extend() {                /* backing_extend; out: `no_space` */
    off = reserved;
    no_space = false;
    do
    :: off >= need -> break
    :: off < need ->
#ifdef RESERVED_FIRST
        atomic { reserved = off + 1; check() };
#endif
        backed[off] = true;      /* fallocate, which may report that there is no space */
        if
        :: true -> atomic { reserved = off + 1; check() }; off++
        :: true -> no_space = true; break
        fi
    od
}

proctype Allocator(byte t) {
    byte page, need, keep, off;
    bool placed, no_space;
    {
        enter(heap_gate);
        place(true);
        leave(heap_gate);
        if
        :: placed || need > PAGES
        :: else ->
            enter(reserve_gate);
            do
            :: placed || no_space || need > PAGES -> break
            :: else ->
                extend();
                if
                :: no_space ->
                    REACHED(2);
#ifdef UNDO_WITHOUT_RESERVE_GATE
                    leave(reserve_gate);
#endif
                    give_back()
                :: else
                fi;
                enter(heap_gate);
#ifdef NOT_ASKED_AGAIN
                place(no_space);
#else
                place(true);
#endif
                if :: !placed && !no_space && need <= PAGES -> REACHED(3) :: else fi;        /* another one had it */
                leave(heap_gate)
            od;
            atomic { if :: reserve_gate == t + 1 -> reserve_gate = 0 :: else fi }
        fi;
        if
        :: placed ->
            store();
            store();
            enter(heap_gate);
            if :: top == page + 1 -> top = page; REACHED(4) :: else fi;
            leave(heap_gate)
        :: else
        fi
    } MORTAL;
    atomic { ended[t] = true; page = 0; need = 0; keep = 0; off = 0; placed = false; no_space = false }
}

proctype Trimmer(byte t) {       /* heap_trim */
    byte keep, off;
    {
#ifndef TRIM_WITHOUT_RESERVE_GATE
        enter(reserve_gate);
#endif
        give_back();
#ifndef TRIM_WITHOUT_RESERVE_GATE
        leave(reserve_gate)
#endif
    } MORTAL;
    atomic { ended[t] = true; keep = 0; off = 0 }
}

proctype Killer() {
    byte kills = 0;
    do
    :: kills == N_KILLS -> break
    :: true -> break
    :: kills < N_KILLS -> atomic {
        if
        :: !ended[0] && !killed[0] -> killed[0] = true
        :: !ended[1] && !killed[1] -> killed[1] = true
        :: !ended[2] && !killed[2] -> killed[2] = true
        :: else
        fi;
        kills++ }
    od
}

init {
    atomic {
        backed[0] = true;
        run Allocator(0); run Allocator(1); run Trimmer(2); run Killer()
    }
}
