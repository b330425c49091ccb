/* The event of shmem/_sync/primitives.pyx: one word that is its own channel (shmem/_sync/channel.pxd).  `sequence`, the low half, has the state in
   bit 0, and above it the number of signals.

   Waiter 0 has no deadline; waiter 1 stops waiting once, for Ctrl-C or its deadline, and waits again or gives up.  Thread 2 signals and
   resets immediately; after the threads that waited then have continued, it signals without a reset.  At most one of the three is
   killed, before any of its steps.  With NO_KILLS there is another thread that signals and resets.

   Claims: a thread that waits during a signal continues, although a reset follows immediately (no deadlock); only signaled threads continue;
   registrations and due wakes are never fewer than sleepers.

   Seeded errors: LOOK_AT_STATE_ALONE, SIGNAL_DOES_NOT_COUNT, SINCE_TAKEN_ANEW, SIGNAL_WITHOUT_SWAP, WAKE_ONE, NO_WAKE. */

#ifdef NO_KILLS
#define THREADS 4
#else
#define THREADS 3
#endif
byte times_out = 0;
#define DEADLINES(t) (t == 1 && times_out == 0)
#include "channel.h"

#define EVENT_SIGNALED 1
#define ALL_WAITERS THREADS
#define OK 1
#define TIMEOUT_EXPIRED 2
#define INTERRUPTED 3

bool waits[THREADS];       /* the thread waits, and was not signaled since */
bool goes_on[THREADS];     /* the event was signaled while the thread waited, or before */

inline event_sequence() {        /* at the start of a wait */
    d_step {
        since = sequence;
        if :: since & EVENT_SIGNALED -> goes_on[t] = true :: else -> waits[t] = true fi
    }
}

#ifdef LOOK_AT_STATE_ALONE
#define HAS_BEEN_SIGNALED(now) (now & EVENT_SIGNALED)
#else
#define HAS_BEEN_SIGNALED(now) (now != since)
#endif

inline event_wait() {
    result = 0;
    if
    :: since & EVENT_SIGNALED || HAS_BEEN_SIGNALED(sequence) -> result = OK
    :: else
    fi;
    do
    :: result != 0 -> break
    :: else ->
        channel_register();
        if
        :: HAS_BEEN_SIGNALED(mine) -> REACHED(3); channel_withdraw(); result = OK
        :: else ->
            channel_sleep();
            if :: status != 0 -> times_out = 1; channel_withdraw() :: else fi;
            if
            :: HAS_BEEN_SIGNALED(sequence) ->
                if :: status == 0 && !(sequence & EVENT_SIGNALED) -> REACHED(4) :: else fi;      /* and already reset */
                result = OK
            :: else ->
                if
                :: status != 0 && t == 1 -> result = TIMEOUT_EXPIRED
                :: status != 0 && t == 1 -> result = INTERRUPTED
                :: true
                fi
            fi
        fi
    od
}

inline event_signal() {
    d_step { r = registered; s = sequence };
    do
    :: s & EVENT_SIGNALED -> break
    :: else ->
        d_step {
            if
#ifdef SIGNAL_WITHOUT_SWAP
            :: true ->
#else
            :: registered == r && sequence == s ->
#endif
                registered = 0;
#ifdef SIGNAL_DOES_NOT_COUNT
                sequence = s | EVENT_SIGNALED;
#else
                sequence = (s + 2) | EVENT_SIGNALED;
#endif
                if :: r > 0 -> due[t] = ALL_WAITERS :: else fi;
                goes_on[0] = goes_on[0] || waits[0]; waits[0] = false;
                goes_on[1] = goes_on[1] || waits[1]; waits[1] = false;
                never_fewer_than_sleepers();
                ok = true
            :: else -> r = registered; s = sequence; ok = false
            fi
        };
        if
        :: ok ->
            if
            :: r > 0 ->
#ifdef WAKE_ONE
                futex_wake(1)
#elif !defined(NO_WAKE)
                futex_wake(ALL_WAITERS)
#else
                skip
#endif
            :: else
            fi;
            break
        :: else
        fi
    od;
    atomic { r = 0; s = 0; ok = false }
}

inline event_reset() {           /* its loop is one step: the swap that succeeds, or the read of an event that is not signaled */
    d_step { if :: sequence & EVENT_SIGNALED -> sequence-- :: else fi }
}

proctype Waiter(byte t) {
    byte mine, status, since, result;
    {
        event_sequence();
        do
        :: event_wait();
            if
            :: result == OK -> assert(goes_on[t]); break
            :: result == TIMEOUT_EXPIRED -> break
            :: result == INTERRUPTED ->          /* checked for Ctrl-C; continues to wait */
                REACHED(5);
#ifdef SINCE_TAKEN_ANEW
                since = sequence
#endif
            fi
        od
    } MORTAL;
    atomic { ended[t] = true; waits[t] = false; mine = 0; status = 0; since = 0; result = 0 }
}

#define HAS_GONE_ON(t) (!goes_on[t] || ended[t] || killed[t])

proctype Signaller(byte t) {
    byte r, s, i;
    bool ok;
    {
        event_signal();
        event_reset();
        if
        :: t == 2 ->
            HAS_GONE_ON(0) && HAS_GONE_ON(1);
#ifdef NO_KILLS
            ended[3];
#endif
            event_signal()
        :: else
        fi
    } MORTAL;
    atomic { ended[t] = true; r = 0; s = 0; i = 0; ok = false }
}

#ifndef NO_KILLS
proctype Killer() {
    if
    :: true
    :: kill_thread(0)
    :: kill_thread(1)
    :: kill_thread(2)
    fi
}
#endif

init {
    atomic {
        run Waiter(0); run Waiter(1); run Signaller(2);
#ifdef NO_KILLS
        run Signaller(3)
#else
        run Killer()
#endif
    }
}
