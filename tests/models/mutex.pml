/* The owned mutex of shmem/_sync/primitives.pyx and _sync/primitives.pxd: threads 0 and 1 of the participant in entry 0, thread 2 of that in entry 1.
   Thread 1 may end without unlocking, thread 2 has a deadline.  Threads 0 and 2 have the same thread pointer, as after a fork.
   At most one of the two processes is killed, before any step of its threads.  With REUSED thread 1 belongs to a process that takes
   the entry of the killed one.  With NO_KILLS processes are not killed, and thread 0 locks recursively, and once more afterwards.

   Claims: one holder; each death is reported once, to the next owner, and only deaths are; no deadlock, so every take-over happens.

   Seeded errors: THREAD_POINTER_ALONE, THREAD_NOT_WIPED, NO_TAKE_OVER, TAKE_OVER_BLINDLY, GENERATION_NOT_COMPARED, DEATH_NOT_REPORTED,
   DEATH_REPORTED_TWICE, NO_NOTIFY. */

#define THREADS 3
#define DEADLINES(t) (t == 2)
#define SLICES
#ifndef EARLY
#define EARLY 1
#endif
#include "channel.h"

#define OK 0
#define TIMEOUT_EXPIRED 1

byte owner = 0;                  /* the word: SIGNATURE of a participant, or 0 */
byte thread = 0;                 /* THREAD_SIGNATURE of the owner, or 0 */
byte depth = 0;
bool died = false;
byte generation[2];              /* of an entry: the high half of `readers` */
bool alive[2];                   /* the liveness byte of an entry is locked */

bool inside = false;             /* a thread holds the mutex; only for the assertions */
bool unreported = false;             /* an owner is dead, and its death was not reported yet */

#define SIGNATURE(entry, generation) ((generation) * 4 + (entry) + 1)
#define ENTRY(word) (((word) & 3) - 1)
#define GENERATION(word) ((word) / 4)
#define THREAD_POINTER(t) (t % 2 + 1)
#ifdef THREAD_POINTER_ALONE
#define THREAD_SIGNATURE THREAD_POINTER(t)
#else
#define THREAD_SIGNATURE (gate_word * 4 + THREAD_POINTER(t))
#endif

inline owner_is_dead() {         /* participant_is_alive of shmem/_base/participants.pyx, of `word`; out: `yes` */
#ifdef GENERATION_NOT_COMPARED
    yes = false;
#else
    yes = generation[ENTRY(word)] != GENERATION(word);
#endif
    if :: !yes -> yes = ENTRY(word) != entry && !alive[ENTRY(word)] :: else fi
}

inline mutex_is_mine() {         /* out: `yes` */
    yes = owner == gate_word;
    if :: yes -> yes = thread == THREAD_SIGNATURE :: else fi
}

inline mutex_claim() {           /* out: `result`, `owner_died` */
    do
    :: word = owner;
        if
        :: word == 0 ->
            d_step { yes = owner == 0; if :: yes -> owner = gate_word :: else fi };
            if :: yes -> result = OK; break :: else fi
        :: else ->
            yes = false;
#ifndef NO_TAKE_OVER
            if :: status != 0 -> owner_is_dead() :: else fi;
#endif
            if
            :: yes ->
#ifdef TAKE_OVER_BLINDLY
                owner = gate_word;
#else
                d_step { yes = owner == word; if :: yes -> owner = gate_word :: else fi };
#endif
                if :: yes -> REACHED(3); owner_died = true; result = OK; break :: else REACHED(4) fi
            :: else ->
                if :: status != 0 && DEADLINES(t) -> REACHED(5); result = TIMEOUT_EXPIRED; break :: true fi;
                channel_register();
                if
                :: owner == 0 -> channel_withdraw()
                :: else ->
                    channel_sleep();
                    if :: status != 0 -> channel_withdraw() :: else fi
                fi
            fi
        fi
    od;
    mine = 0; status = 0
}

inline mutex_sign() {
#ifdef DEATH_NOT_REPORTED
    owner_died = false;
#endif
    if
    :: died || owner_died ->
#ifndef DEATH_REPORTED_TWICE
        died = false;
#endif
        owner_died = true
    :: else
    fi;
    depth = 1;
    thread = THREAD_SIGNATURE
}

inline mutex_lock() {
    owner_died = false;
    mutex_is_mine();
    if
    :: yes -> depth++; result = OK; assert(inside && depth == 2)
    :: else ->
        mutex_claim();
        if
        :: result == OK ->
            mutex_sign();
            d_step { assert(!inside && owner_died == unreported); inside = true; unreported = false }
        :: else
        fi
    fi
}

inline mutex_unlock() {          /* only called by the holder */
    mutex_is_mine();
    assert(yes);
    depth--;
    if
    :: depth > 0
    :: else ->
        d_step { assert(inside); inside = false };
#ifndef THREAD_NOT_WIPED
        thread = 0;
#endif
        owner = 0;
#ifndef NO_NOTIFY
        channel_notify(1)
#endif
    fi
}

inline mutexes_release_all() {   /* the thread ends */
    d_step { assert(inside); inside = false };
    died = true;
    thread = 0;
    d_step { owner = 0; unreported = true };
    channel_notify(1)
}

inline live() {
    mutex_lock();
    if
    :: result != OK
    :: else ->
#ifdef NO_KILLS
        if :: t == 0 -> mutex_lock(); mutex_unlock() :: else fi;
#endif
        if
        :: mutex_unlock()
        :: t == 1 -> mutexes_release_all()
        fi
    fi
}

proctype Thread(byte t; byte entry) {
    byte mine, status, word, gate_word, result, r, s, i;
    bool yes, owner_died, ok;
    {
        gate_word = SIGNATURE(entry, generation[entry]);
        live();
#ifdef NO_KILLS
        if :: t == 0 -> live() :: else fi
#endif
    } MORTAL;
    atomic { ended[t] = true; mine = 0; status = 0; word = 0; result = 0; r = 0; s = 0; i = 0; yes = false; owner_died = false; ok = false }
}

#ifdef REUSED
proctype Opener(byte t; byte entry) {      /* participant_take of shmem/_base/participants.pyx; this process is not killed */
    byte mine, status, word, gate_word, result, r, s, i;
    bool yes, owner_died, ok;
    alive[entry] = true;
    generation[entry]++;
    gate_word = SIGNATURE(entry, generation[entry]);
    live()
}
#define REUSE(entry) run Opener(1, entry)
#else
#define REUSE(entry) skip
#endif

#ifndef NO_KILLS
inline kill_participant(entry, first, second) {
    d_step {
        !(ended[first] && ended[second]) ->
        if :: due[first] > 0 || due[second] > 0 -> REACHED(2) :: else fi;
        killed[first] = true; asleep[first] = false; due[first] = 0;
        killed[second] = true; asleep[second] = false; due[second] = 0;
        alive[entry] = false; kills++;
        if :: owner == SIGNATURE(entry, 1) -> inside = false; unreported = true :: else fi
    };
    REUSE(entry)
}

proctype Killer() {
    if
    :: true
#ifdef REUSED
    :: kill_participant(0, 0, 0)
#else
    :: kill_participant(0, 0, 1)
#endif
    :: kill_participant(1, 2, 2)
    fi
}
#endif

init {
    atomic {
        generation[0] = 1; generation[1] = 1; alive[0] = true; alive[1] = true;
        run Thread(0, 0); run Thread(2, 1);
#ifndef REUSED
        run Thread(1, 0);
#endif
#ifndef NO_KILLS
        run Killer()
#endif
    }
}
