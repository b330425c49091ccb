/* The ring behind Queue, shmem/_sync/ring.pyx, with one slot: producer 0 has two messages; consumers 2 and 3 take one each, and 3 times
   out once and comes back.  At most one of the three is killed, before any of its steps.  With TWO_PRODUCERS threads are not killed,
   and producers 0 and 1 have a message each.  With GIVES_UP threads are not killed either, there is a third consumer, and consumer 3
   may leave without a message: at its deadline, or because the gate does not open in time (or for a signal); if it took a message,
   the producer puts one more.

   The two gates are modelled in heap_gate.pml (shmem/_sync/gate.pxd): here a gate is entered in one step, if it is open or its
   owner is dead.  Producers do not sleep when the queue is full: their waiting mirrors that of the consumers.

   Claims: every committed message is taken once, complete, and in its producer's order; no lost wake (no deadlock).

   Seeded errors: TAIL_BEFORE_COPY, HEAD_BEFORE_COPY, NO_GATE, LOOK_BEFORE_REGISTER, NOTIFY_BEFORE_COMMIT, NO_WAKE, WAKE_NOT_PASSED_ON. */

#if defined(TWO_PRODUCERS) || defined(GIVES_UP)
#define NO_KILLS
#endif
#ifdef GIVES_UP
#define THREADS 5
#define LEAVES(t) (t == 3)
#else
#define THREADS 4
#define LEAVES(t) false
#endif
byte times_out = 0;
#define DEADLINES(t) (t == 3 && times_out == 0)
#include "channel.h"             /* not_empty */

#define CAPACITY 1
#ifdef TWO_PRODUCERS
#define N_MESSAGES 1
#else
#define N_MESSAGES 2
#endif
#define NO_OWNER 255

byte slot[CAPACITY];             /* producer * 16 + number, 0: half written */
byte head = 0, tail = 0, head_seen = 0, tail_seen = 0;
byte producers_gate = NO_OWNER, consumers_gate = NO_OWNER;
#ifdef GIVES_UP
bool took[THREADS];
#endif
byte last[2];                    /* the last number taken, for each producer */

inline enter(gate) {
#ifdef NO_GATE
    skip
#else
    atomic { gate == NO_OWNER || killed[gate] -> if :: gate != NO_OWNER -> REACHED(3) :: else fi; gate = t }
#endif
}

inline enter_or_give_up() {      /* by a consumer; out: `through` */
#ifdef GIVES_UP
    if
    :: enter(consumers_gate); through = true
    :: atomic { LEAVES(t) && consumers_gate != NO_OWNER -> through = false; got = false }
    fi
#else
    enter(consumers_gate)
#endif
}

inline put_inside() {            /* puts one message; the producer waits for room before it enters */
    at = tail;
    if :: at - head_seen == CAPACITY -> head_seen = head :: else fi;
    if
    :: at - head_seen == CAPACITY -> producers_gate = NO_OWNER
    :: else ->
#ifdef TAIL_BEFORE_COPY
        tail = at + 1;
#endif
        slot[at % CAPACITY] = 0;
        slot[at % CAPACITY] = t * 16 + n;
#ifdef NOTIFY_BEFORE_COMMIT
        channel_notify(1);
#endif
        tail = at + 1;           /* the commit */
        producers_gate = NO_OWNER;
#ifndef NOTIFY_BEFORE_COMMIT
        channel_notify(1);
#endif
        n++
    fi
}

inline commit_head() {
    d_step {
        assert(message % 16 == last[message / 16] + 1);
        last[message / 16] = message % 16;
        head = at + 1
    }
}

inline get_inside() {            /* out: `got` */
    at = head;
    if :: tail_seen == at -> tail_seen = tail :: else fi;
    if
    :: tail_seen == at -> got = false; consumers_gate = NO_OWNER
    :: else ->
#ifdef HEAD_BEFORE_COPY
        head = at + 1;
#endif
        message = slot[at % CAPACITY];
        commit_head();
        got = true;
        consumers_gate = NO_OWNER;
        message = 0
    fi
}

inline wait() {                  /* by a consumer */
    do
    :: enter_or_give_up();
        if
        :: !through ->
#ifndef WAKE_NOT_PASSED_ON
            if :: woken -> REACHED(6); channel_notify(1) :: else fi;
#endif
            break
        :: else
        fi;
        get_inside();
        woken = false;
        if :: got -> break :: else fi;
        if :: LEAVES(t) && times_out -> break :: else fi;       /* past the deadline, after a check */
#ifndef LOOK_BEFORE_REGISTER
        channel_register();
        enter_or_give_up();
        if :: !through -> channel_withdraw(); break :: else fi;
        get_inside();
        if :: got -> REACHED(4); channel_withdraw(); break :: else fi;
#else
        channel_register();
#endif
        channel_sleep();
        woken = LEAVES(t) && status == 0;
        if :: status != 0 -> times_out = 1; REACHED(5); channel_withdraw() :: else fi
    od
}

proctype Producer(byte t) {
    byte at, n, r, s, i;
    bool ok;
    {
        n = 1;
        do
        :: n <= N_MESSAGES ->
            tail - head < CAPACITY;
            enter(producers_gate);
            put_inside()
        :: else -> break
        od;
#ifdef GIVES_UP
        ended[3];
        if :: took[3] -> tail - head < CAPACITY; enter(producers_gate); put_inside() :: else fi
#endif
    } MORTAL;
    atomic { ended[t] = true; at = 0; n = 0; r = 0; s = 0; i = 0; ok = false }
}

proctype Consumer(byte t) {
    byte at, mine, status, message, r, s, i;
    bool got, ok, woken, through = true;
    {
        wait();
#ifdef GIVES_UP
        took[t] = got
#endif
    } MORTAL;
    atomic { ended[t] = true; at = 0; mine = 0; status = 0; message = 0; got = false; woken = false; through = true }
}

#ifndef NO_KILLS
proctype Killer() {
    if
    :: true
    :: kill_thread(0)
    :: kill_thread(2)
    :: kill_thread(3)
    fi
}
#endif

init {
    atomic {
        run Producer(0); run Consumer(2); run Consumer(3);
#ifdef TWO_PRODUCERS
        run Producer(1);
#endif
#ifdef GIVES_UP
        run Consumer(4);
#endif
#ifndef NO_KILLS
        run Killer()
#endif
    }
}
