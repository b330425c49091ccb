/* A gate, shmem/_sync/gate.pxd, as the heap uses it (shmem/_heap/heap.pyx): thread 0 of the participant in entry 0, thread 1 of
   that in entry 1, thread 2 of a process that takes over the entry of thread 0 after its death, and cleans up.  The owner changes the heap
   in steps, between which it is inconsistent; so does recovery.  Up to two threads are killed before any of their steps: thread 0, and
   after it one of the others, so also during recovery and cleanup.
   With NO_KILLS there are three participants and no kills.

   Claims: one owner; the owner of the gate finds the heap consistent; no deadlock, so every take-over happens and no wake is lost.

   Seeded errors: NO_RECOVERY, NO_TAKE_OVER, GENERATION_NOT_COMPARED, TAKE_OVER_BLINDLY, WAITERS_NOT_KEPT, WAITERS_NOT_SET,
   NO_WAKE. */

#define THREADS 3
#define N_KILLS 2
#ifndef EARLY
#define EARLY 1
#endif

byte gate = 0;                   /* SIGNATURE of the owner, or 0 */
bool waiters = false;            /* GATE_WAITERS, in the same word */
bool asleep[THREADS];            /* on the low half of the word: index and flag, not the generation */
bool killed[THREADS];
bool ended[THREADS];
byte generation[3];
bool alive[3];                   /* the liveness byte of an entry is locked */
byte kills = 0, early = 0, late = 0;

bool whole = true;               /* the heap is consistent */
byte inside = 0;                 /* the thread that changes the heap + 1; only for the assertions */

#define SIGNATURE(entry, generation) ((generation) * 4 + (entry) + 1)
#define INDEX_PLUS_1(word) ((word) & 3)
#define GENERATION(word) ((word) / 4)

#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)
#ifdef NO_KILLS
#define MORTAL
#else
#define MORTAL unless { killed[t] }
#endif

inline participant_is_alive() {  /* shmem/_base/participants.pyx, of the owner in `word`; out: `yes` */
#ifdef GENERATION_NOT_COMPARED
    yes = true;
#else
    yes = generation[INDEX_PLUS_1(word) - 1] == GENERATION(word);
#endif
    if :: yes -> yes = INDEX_PLUS_1(word) - 1 == entry || alive[INDEX_PLUS_1(word) - 1] :: else fi
}

inline heap_recover() {          /* shmem/_heap/recovery.pyx; may be killed and started again */
#ifdef NO_RECOVERY
    skip
#else
    d_step { assert(inside == 0); inside = t + 1 };
    whole = false;
    whole = true;
    inside = 0
#endif
}

inline change_the_heap() {
    d_step { assert(inside == 0 && whole); inside = t + 1 };
    whole = false;
    whole = true;
    inside = 0
}

inline gate_take_over() {        /* of `word`, `flag`; out: `yes` */
    participant_is_alive();
#ifdef NO_TAKE_OVER
    yes = false;
#else
    if
    :: yes -> yes = false
    :: else ->
#ifdef TAKE_OVER_BLINDLY
        gate = gate_word; waiters = true; yes = true;
#else
        d_step { yes = gate == word && waiters == flag; if :: yes -> gate = gate_word; waiters = true :: else fi };
#endif
        if :: yes && !whole -> REACHED(1) :: else fi;
        if :: yes && kills == 2 -> REACHED(2) :: else fi;
        if :: yes -> heap_recover() :: else REACHED(3) fi
    fi
#endif
}

inline futex_wait() {            /* on `word`, `flag`; out: `timed_out` */
    d_step {
        timed_out = false;
        if :: INDEX_PLUS_1(gate) == INDEX_PLUS_1(word) && waiters == flag -> asleep[t] = true :: else fi
    };
    if
    :: !asleep[t]
    :: d_step { asleep[t] && kills > 0 && early < EARLY -> early++; asleep[t] = false; timed_out = true }
    :: atomic { asleep[t] && kills > 0 && late < THREADS * N_KILLS && timeout -> late++; asleep[t] = false; timed_out = true }
    fi
}

inline heap_enter() {            /* gate_try, gate_step of shmem/_sync/gate.pxd; the spins are one check */
    mine = false;                /* the variable `waiters` of the function */
    d_step { yes = gate == 0 && !waiters; if :: yes -> gate = gate_word :: else fi };
    do
    :: yes -> break
    :: else ->
        d_step { word = gate; flag = waiters };
        if
        :: word == 0 ->
            d_step { yes = gate == 0 && waiters == flag; if :: yes -> gate = gate_word; waiters = mine :: else fi }
        :: else ->
            if
#ifdef WAITERS_NOT_SET
            :: !flag -> yes = true
#else
            :: !flag -> d_step { yes = gate == word && !waiters; if :: yes -> waiters = true; flag = true :: else fi }
#endif
            :: else -> yes = true
            fi;
            if
            :: !yes
            :: else ->
#ifndef WAITERS_NOT_KEPT
                mine = true;
#endif
                futex_wait();
                yes = false;
                if :: timed_out -> gate_take_over() :: else fi
            fi
        fi
    od;
    word = 0; flag = false; timed_out = false; yes = false
}

inline heap_leave() {            /* gate_leave */
    d_step { flag = waiters; gate = 0; waiters = false };
    if
    :: flag ->
#ifndef NO_WAKE
        atomic {
            if
            :: asleep[0] -> asleep[0] = false
            :: asleep[1] -> asleep[1] = false
            :: asleep[2] -> asleep[2] = false
            :: else -> REACHED(4)        /* no thread sleeps now */
            fi
        }
#endif
        skip
    :: else
    fi;
    flag = false
}

proctype Thread(byte t; byte entry) {
    byte word, gate_word;
    bool flag, mine, yes, timed_out;
    {
        gate_word = SIGNATURE(entry, generation[entry]);
        heap_enter();
        change_the_heap();
        heap_leave()
    } MORTAL;
    atomic { ended[t] = true; mine = false; word = 0; flag = false; yes = false; timed_out = false; gate_word = 0 }
}

#ifndef NO_KILLS
proctype Opener(byte t; byte entry) {      /* participant_take, then clear_up_after of shmem/_sections/membership.pyx */
    byte word, gate_word;
    bool flag, mine, yes, timed_out;
    {
        alive[entry] = true;
        generation[entry]++;
        gate_word = SIGNATURE(entry, generation[entry]);
        heap_enter();
        REACHED(5);
        heap_recover();
        change_the_heap();
        heap_leave()
    } MORTAL;
    atomic { ended[t] = true; mine = false; word = 0; flag = false; yes = false; timed_out = false; gate_word = 0 }
}

inline kill_thread(target, entry) {
    d_step {
        !ended[target] && alive[entry] ->
        killed[target] = true; asleep[target] = false; alive[entry] = false; kills++;
        if :: inside == target + 1 -> inside = 0 :: else fi
    }
}

proctype Killer() {
    if
    :: true
    :: kill_thread(0, 0);
        run Opener(2, 0);
        if
        :: true
        :: kill_thread(1, 1)
        :: kill_thread(2, 0)
        fi
    fi
}
#endif

init {
    atomic {
        generation[0] = 1; generation[1] = 1; generation[2] = 1; alive[0] = true; alive[1] = true; alive[2] = true;
        run Thread(0, 0); run Thread(1, 1);
#ifdef NO_KILLS
        run Thread(2, 2)
#else
        run Killer()
#endif
    }
}
