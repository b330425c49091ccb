/* The channel (shmem/_sync/channel.pxd) and on it the semaphore (shmem/_sync/primitives.pxd and _sync/primitives.pyx): two waiters, the
   second with a deadline, and two signallers, signal(1) and signal(2).  At most one of the four is killed, before any of its steps.
   With NO_KILLS there is a third waiter.  With BINARY the value is 1, and three threads each take it and signal it again.

   Claims: the units taken and the value left add up to the units signalled; registrations and wakes still due are never fewer
   than sleepers; no waiter sleeps forever while the value is positive (no deadlock, since as much is signalled as is waited for).

   Seeded errors: NOTIFY_WITHOUT_SEQUENCE, LOOK_BEFORE_REGISTER, WITHDRAW_BLINDLY, NOTIFY_BEFORE_CHANGE, NO_WAKE, WAKE_ONE,
   GIVE_UP_WITHOUT_LOOK, PLAIN_TAKE, CLEAR_BLINDLY. */

#ifdef BINARY
#define NO_KILLS
#define THREADS 3
#elif defined(NO_KILLS)
#define THREADS 5
#else
#define THREADS 4
#endif
#define DEADLINES(t) (t == 1)
#include "channel.h"

#ifdef BINARY
byte value = 1, signalled = 1;
#else
byte value = 0, signalled = 0;
#endif
byte taken = 0;

inline semaphore_try() {         /* _sync/primitives.pxd: the load of a zero, or the swap that succeeds */
#ifdef PLAIN_TAKE
    v = value;
    d_step { got = v > 0; if :: got -> value = v - 1; taken++ :: else fi; assert(taken + value == signalled); v = 0 }
#else
    d_step { got = value > 0; if :: got -> value--; taken++ :: else fi; assert(taken + value == signalled) }
#endif
}

inline semaphore_signal(n) {     /* _sync/primitives.pxd */
#ifdef NOTIFY_BEFORE_CHANGE
    channel_notify(n);
    d_step { value = value + n; signalled = signalled + n }
#else
    d_step { value = value + n; signalled = signalled + n };
#ifdef WAKE_ONE
    channel_notify(1)
#else
    channel_notify(n)
#endif
#endif
}

inline semaphore_wait() {        /* _sync/primitives.pyx; the spins are one check */
    semaphore_try();
    do
    :: got -> break
    :: else ->
#ifdef LOOK_BEFORE_REGISTER
        semaphore_try();
        if :: got -> break :: else fi;
        channel_register();
#else
        channel_register();
        semaphore_try();
        if :: got -> channel_withdraw(); break :: else fi;
#endif
        channel_sleep();
        if :: status != 0 -> channel_withdraw() :: else fi;
#ifdef GIVE_UP_WITHOUT_LOOK
        if :: DEADLINES(t) -> break :: true fi;
#endif
        semaphore_try();
        if
        :: got && status != 0 -> REACHED(3); break        /* signalled at the moment of giving up */
        :: got && status == 0 -> REACHED(4); break
        :: !got && status == 0 -> REACHED(5)              /* woken, but another thread took the unit first */
        :: !got && status != 0
        fi;
        if :: DEADLINES(t) -> REACHED(6); break :: true fi;     /* past the deadline, woken or not */
        mine = 0; status = 0
    od
}

proctype Waiter(byte t) {
    byte mine, status, v, r, s, i;
    bool got, ok;
    {
        semaphore_wait();
#ifdef BINARY
        if :: got -> semaphore_signal(1) :: else fi
#endif
    } MORTAL;
    atomic { ended[t] = true; mine = 0; status = 0; v = 0; got = false }
}

proctype Signaller(byte t; byte n) {
    byte r, s, i;
    bool ok;
    { semaphore_signal(n) } MORTAL;
    atomic { ended[t] = true; r = 0; s = 0; i = 0; ok = false }
}

#ifndef NO_KILLS
proctype Killer() {
    if
    :: true
    :: kill_thread(0)
    :: kill_thread(1)
    :: kill_thread(2)
    :: kill_thread(3)
    fi
}
#endif

init {
    atomic {
        run Waiter(0); run Waiter(1);
#ifdef BINARY
        run Waiter(2)
#else
        run Signaller(2, 1); run Signaller(3, 2);
#endif
#ifdef BINARY
#elif defined(NO_KILLS)
        run Waiter(4)
#else
        run Killer()
#endif
    }
}
