/* The channel of shmem/_sync/channel.pxd, for the models that wait on one.

   Its word is `registered` (high half) and `sequence` (low half, the futex); each d_step or atomic here is one
   instruction, or one system call, there.  A thread is `t`; its variables are `mine` (the sequence it registered with), `status`,
   and for notifying `r`, `s`, `ok`, `i`.

   The kernel.  futex_wait compares and falls asleep in one step.  futex_wake wakes any n sleepers, even those that came
   after the notification: the queue is first in, first out only among threads of one priority.

   A sleeper checks again by itself (the end of a slice) only after a kill, so a lost wake shows as a deadlock.  A sleeper with a
   deadline may give up at any moment.  In a model with take-over, SLICES bounds the number of slices; otherwise a sleeper that checks
   repeatedly in vain would not be a deadlock.  A slice then ends EARLY times at an arbitrary moment, and once for each thread when no
   other step is possible; that must be sufficient.

   The model defines THREADS and DEADLINES (the threads that have one).  `due[t]` is the number of wakes for which t has taken
   registrations and which it has not done yet; it serves only the assertion. */

#define SLICE_OVER 1     /* ETIMEDOUT, or EINTR */
byte registered = 0, sequence = 0;
bool asleep[THREADS];
byte due[THREADS];
bool killed[THREADS];
bool ended[THREADS];
byte kills = 0;

#if THREADS == 3
#define SLEEPERS (asleep[0] + asleep[1] + asleep[2])
#define DUE (due[0] + due[1] + due[2])
#elif THREADS == 4
#define SLEEPERS (asleep[0] + asleep[1] + asleep[2] + asleep[3])
#define DUE (due[0] + due[1] + due[2] + due[3])
#else
#define SLEEPERS (asleep[0] + asleep[1] + asleep[2] + asleep[3] + asleep[4])
#define DUE (due[0] + due[1] + due[2] + due[3] + due[4])
#endif

/* A model that never reaches its subject proves nothing: with -DREACH=n Spin must find the place n */
#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)

#ifdef SLICES
byte early = 0, late = 0;
#define SLICE_ENDS (kills > 0 && early < EARLY)
#else
#define SLICE_ENDS (kills > 0)
#endif

inline never_fewer_than_sleepers() { assert(kills > 0 || registered + DUE >= SLEEPERS) }

inline channel_register() { d_step { mine = sequence; registered++ } }

inline channel_withdraw() {
    d_step {       /* one round of the loop is sufficient, because it ends when the swap succeeds */
        if
#ifdef WITHDRAW_BLINDLY
        :: registered > 0 ->
#else
        :: sequence == mine && registered > 0 ->
#endif
            registered--
        :: else
        fi;
        never_fewer_than_sleepers()
    }
}

inline channel_sleep() {
    d_step {
        status = 0;
        if
        :: sequence == mine -> asleep[t] = true; never_fewer_than_sleepers()
        :: else -> REACHED(1)        /* notified between the check and the sleep */
        fi
    };
    if
    :: d_step { !asleep[t] -> status = 0 }
    :: d_step {
        asleep[t] && (SLICE_ENDS || DEADLINES(t)) ->
#ifdef SLICES
            if :: kills > 0 && early < EARLY -> early++ :: else fi;
#endif
            asleep[t] = false; status = SLICE_OVER
       }
#ifdef SLICES
    :: atomic { asleep[t] && kills > 0 && late < THREADS && timeout -> late++; asleep[t] = false; status = SLICE_OVER }
#endif
    fi
}

inline futex_wake(n) {
    atomic {
        i = 0;
        do
        :: i < n && SLEEPERS > 0 ->
            if
            :: asleep[0] -> asleep[0] = false
            :: asleep[1] -> asleep[1] = false
            :: asleep[2] -> asleep[2] = false
#if THREADS > 3
            :: asleep[3] -> asleep[3] = false
#endif
#if THREADS > 4
            :: asleep[4] -> asleep[4] = false
#endif
            fi;
            i++
        :: else -> break
        od;
        ok = (i < n);                /* whether it woke fewer than n */
        i = 0;
        due[t] = 0;
        never_fewer_than_sleepers()
    }
}

inline channel_notify(n) {       /* with channel_notify_registered */
    d_step { r = registered; s = sequence };
    do
    :: r == 0 -> break
    :: else ->
        d_step {
            if
            :: registered == r && sequence == s ->
                registered = (r > n -> r - n : 0);
#ifndef NOTIFY_WITHOUT_SEQUENCE
                sequence++;
#endif
                due[t] = n;
                ok = true
            :: else -> r = registered; s = sequence; ok = false
            fi
        };
        if
        :: ok ->
#ifndef NO_WAKE
            futex_wake(n);
            d_step {          /* no thread sleeps, so the remaining registrations are left over */
                if
#ifdef CLEAR_BLINDLY
                :: ok -> registered = 0
#else
                :: ok && r > n && registered == r - n && sequence == s + 1 -> registered = 0; REACHED(7)
#endif
                :: else
                fi;
                never_fewer_than_sleepers()
            };
#endif
            break
        :: else
        fi
    od;
    atomic { r = 0; s = 0; ok = false }
}

#ifdef NO_KILLS
#define MORTAL
#else
#define MORTAL unless { killed[t] }
#endif

/* At most one of the named threads is killed, before any of its steps */
inline kill_thread(target) {
    d_step {
        !ended[target] ->
        if :: due[target] > 0 -> REACHED(2) :: else fi;       /* between removing registrations and waking */
        killed[target] = true; asleep[target] = false; due[target] = 0; kills++
    }
}
