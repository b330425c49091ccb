/* The exit of process P, which another process Q observes: sections_depart in shmem/_sections/process.pyx; section_depart in
   shmem/_sections/first_and_last.pyx; inside_begin in shmem/_base/section.pxd; run_step in shmem/_bridge/calls.pyx.
   P has a thread of Python code, a thread of a C client, and its main thread, which exits.  P may have a view, and may be killed
   before any step.  Q joins, holds the lock, sweeps and leaves, in any order.  The heap gate and the lock are given: they are modelled in
   heap_gate.pml and gate.pml; here their owner is a process, and a dead owner's are taken over.

   Claims: a thread of P uses its private pages only while P is a participant; what a thread of P fills, has a view of, or accesses under the
   lock is not given to Q while P runs; a file that is marked as closed is not in use and needs no recovery; P leaves in order unless a client thread stays
   inside (STAYS); no deadlock.

   Exit waits until no other step is possible before it gives up (`timeout`), and so does its sleep between two attempts, since a second
   is long.

   Seeded errors: LOOK_BEFORE_COUNT, CHECK_BEFORE_LEAVES, LOOK_WITHOUT_GIL, FILLING_NOT_BUSY, LOCK_NOT_BUSY, NESTED_CALL_TURNS_BACK,
   DEPART_WHILE_BUSY, VIEWS_NOT_KEPT, RESTING_IS_DEAD, WAITER_STAYS, LEAVE_WITHOUT_OPENING_BYTE. */

#define P 1
#define Q 2
#define N_ATTEMPTS 2
#define RESTS 2
#ifndef N_OTHER
#define N_OTHER 3                /* operations of Q */
#endif
#ifdef STAYS
#define MAY_STAY true
#else
#define MAY_STAY false
#endif

#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)
#define MORTAL unless { !p_runs }

/* P as the kernel sees it */
bool p_runs = true;
bool p_byte = true;              /* the liveness byte is locked */
bool killed = false;
/* section_t and private pages of P */
bool signs = true;              /* `owner_word` in the private pages */
bool leaves = false;
bool kept = false;
byte n_busy = 0;
byte inside = 0;                 /* of the client's thread */
bool gil = false;
/* the section */
byte attached = 1;               /* P's entry */
bool pending = false;            /* P has a PENDING block */
bool pinned = false;             /* P has a view */
byte lock_gate = 0;
byte heap_gate = 0;
bool halfway = false;            /* the owner of the heap gate is in the middle of a change */
byte opening = 0;                /* the opening byte */
bool clean = false;
bool q_takes_part = false;
/* for the claims only */
bool fills = false;
bool has_view = false;
bool accesses = false;           /* the client's thread, under the lock */

inline gil_take() { atomic { !gil -> gil = true } }

/* Free what P left: recovery under the heap gate, or by the only process */
inline free_left(pins_too) {
    if
    :: pending -> assert(!(p_runs && fills)); pending = false; REACHED(6)
    :: else
    fi;
    if
    :: pinned && pins_too -> assert(!(p_runs && has_view)); pinned = false; REACHED(7)
    :: else
    fi
}

/* -- P -------------------------------------------------------------------------------------------------------------------- */

inline change_heap() {           /* any call of the heap by a thread of P */
    atomic { heap_gate == 0 -> assert(signs); heap_gate = P };
    halfway = true;
    assert(signs);
    atomic { assert(heap_gate == P && halfway); halfway = false };
    atomic { assert(heap_gate == P); heap_gate = 0 }
}

proctype Python() {
    {
        do
#ifdef LOOK_WITHOUT_GIL
        :: !leaves -> n_busy++;
#else
        :: gil_take();           /* run_step */
           if :: leaves -> gil = false; break :: else fi;
           n_busy++;
           gil = false;
#endif
           change_heap();
           n_busy--; break
        :: gil_take();           /* a new array: one attempt with the GIL, filling perhaps without */
           if :: leaves -> gil = false; break :: else fi;
           atomic { assert(signs); pending = true; fills = true };
           if :: gil = false; gil_take() :: true fi;
           atomic { assert(pending && signs); pending = false; fills = false };
           gil = false; break
        od
    } MORTAL
}

inline closed() { inside = 0; break }

proctype Client() {
    byte n_left = 2;
    {
        do
        :: n_left == 0 -> break
        :: else -> n_left--;
           /* _call_begin */
#ifdef LOOK_BEFORE_COUNT
           if :: leaves -> break :: else fi;
           inside = 1;
#else
           inside = 1;
           if :: leaves -> REACHED(3); closed() :: else fi;
#endif
           /* lock_exclusive */
           if
           :: atomic { lock_gate == 0 -> assert(signs); lock_gate = P; accesses = true }
#ifndef WAITER_STAYS
           :: lock_gate == Q && leaves -> REACHED(4); closed()
#endif
           fi;
#ifdef LOCK_NOT_BUSY
           inside = 0;
#endif
           if :: MAY_STAY -> false :: true fi;
           /* heap_allocate, with the lock held */
#ifdef NESTED_CALL_TURNS_BACK
           inside++;
           if :: leaves -> inside = 0 :: else fi;
           if :: inside > 0 -> change_heap(); inside-- :: else fi;
#elif !defined(LOCK_NOT_BUSY)
           inside++;
           if :: leaves -> REACHED(8) :: else fi;
           change_heap();
           inside--;
#endif
           /* unlock_exclusive */
           atomic { assert(signs && lock_gate == P); accesses = false; lock_gate = 0 };
           inside = 0
        od
    } MORTAL;
    n_left = 0
}

inline end_of_p() {
    atomic {
        p_runs = false; p_byte = false; gil = false; fills = false; accesses = false;
        if :: opening == P -> opening = 0 :: else fi
    }
}

inline leave_whole() {           /* _leave_whole: P is the only process that takes part */
    if :: heap_gate != 0 -> halfway = false; heap_gate = 0 :: else fi;
    free_left(false);
    REACHED(5);
    atomic { assert(!q_takes_part); clean = true }
}

inline depart() {                /* section_depart */
#ifndef LEAVE_WITHOUT_OPENING_BYTE
    atomic { opening == 0 -> opening = P };
#endif
    if :: !q_takes_part -> leave_whole() :: else fi;
    if
#ifndef VIEWS_NOT_KEPT
    :: pinned -> attached = RESTS; signs = false
    :: else ->
#else
    :: true ->
#endif
       attached = 0; signs = false; p_byte = false
    fi;
    if :: opening == P -> opening = 0 :: else fi
}

proctype Exit() {
    byte n_attempts = 0;
    bool busy;
    {
        do
        :: gil_take();
           busy = true;
#ifndef CHECK_BEFORE_LEAVES
           leaves = true;
#endif
           if
           :: n_busy == 0 ->
#ifndef FILLING_NOT_BUSY
              if :: !pending ->
#endif
              if :: inside == 0 -> busy = false :: timeout fi
#ifndef FILLING_NOT_BUSY
              :: timeout fi
#endif
           :: timeout
           fi;
#ifdef CHECK_BEFORE_LEAVES
           leaves = true;
#endif
           n_attempts++;
#ifdef DEPART_WHILE_BUSY
           if :: n_attempts == N_ATTEMPTS -> busy = false :: else fi;
#endif
           if
           :: !busy -> depart(); gil = false; break
           :: busy && n_attempts == N_ATTEMPTS -> kept = true; gil = false; break
           :: busy && n_attempts < N_ATTEMPTS -> gil = false; if :: !pending :: timeout fi
           fi
        od;
        if :: kept -> REACHED(1); assert(MAY_STAY) :: attached == RESTS -> REACHED(2) :: else fi;
        true                     /* exit handlers, which may read views */
    } MORTAL;
    end_of_p();
    n_attempts = 0; busy = false
}

proctype Kill() {
    if :: true :: atomic { p_runs -> killed = true }; end_of_p() fi
}

/* -- Q -------------------------------------------------------------------------------------------------------------------- */

inline join() {                  /* _join_locked, first_recover, mark_in_use */
    atomic { opening == 0 -> opening = Q };
    if
    :: !p_byte ->
       atomic {
           if
           :: clean -> assert(!halfway && !pending)
           :: else -> lock_gate = 0; heap_gate = 0; halfway = false
           fi;
           free_left(true); attached = 0
       }
    :: else
    fi;
    clean = false;
    q_takes_part = true;
    opening = 0
}

#define P_IS_DEAD(gate) (gate == P && !p_byte)

inline hold_lock() {
    atomic {
        lock_gate == 0 || P_IS_DEAD(lock_gate) ->
        if :: lock_gate == P -> REACHED(9) :: else fi;
        assert(!(p_runs && accesses));
        lock_gate = Q
    };
    if :: true :: true -> !p_runs fi;        /* for a moment, or for longer than P runs */
    lock_gate = 0
}

inline sweep() {
    atomic { heap_gate == 0 || P_IS_DEAD(heap_gate) -> if :: heap_gate == P -> halfway = false :: else fi; heap_gate = Q };
#ifdef RESTING_IS_DEAD
    if :: !p_byte || attached == RESTS -> atomic { free_left(true); attached = 0 } :: else fi;
#else
    if :: !p_byte -> atomic { free_left(true); attached = 0 } :: else fi;
#endif
    heap_gate = 0
}

inline leave() {                 /* section_depart of Q */
    atomic { opening == 0 -> opening = Q };
    if
    :: !p_byte || attached == RESTS ->
       atomic {
           if :: P_IS_DEAD(heap_gate) -> halfway = false; heap_gate = 0 :: else fi;
           free_left(!p_byte);
           assert(heap_gate == 0 && !halfway)
       };
       clean = true
    :: else
    fi;
    q_takes_part = false;
    opening = 0
}

proctype Other() {
    byte n_left = N_OTHER;
    do
    :: n_left == 0 -> break
    :: n_left > 0 && !q_takes_part -> n_left--; join()
    :: n_left > 0 && q_takes_part -> n_left--; hold_lock()
    :: n_left > 0 && q_takes_part -> n_left--; sweep()
    :: n_left > 0 && q_takes_part -> n_left--; leave()
    od
}

init {
    atomic {
        if :: pinned = true; has_view = true :: true fi;
        if :: q_takes_part = true :: true fi;
        run Python(); run Client(); run Exit(); run Kill(); run Other()
    }
}
