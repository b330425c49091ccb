/* The pairs of words whose order the algorithms rely on, on processors whose stores wait in a buffer before other threads see them.

   A thread's stores go into its buffer, and from there to memory at any time: with TSO (x86) in order, with WEAK (Arm) in any
   order.  The effects of the orders of shmem/_atomics.pxd (threads here do not load words that they store, so there is no forwarding):

               TSO                                        WEAK
     store_seq_cst, fetch_add_seq_cst,
     compare_exchange_seq_cst   empty the buffer first and last    wait until the buffer is empty, then go into it
     store_release              as a plain store                   wait until the buffer is empty, then go into it
     load_seq_cst               as a plain load                    wait until no seq_cst store is in the buffer
     load_acquire               as a plain load                    later loads are done after it
     a plain load               in order                           may be done before an earlier load

   PAIR selects one of the pairs below; the code of each is named there.  Each has four operations: 1 and 2 of the first thread,
   3 and 4 of the second one.  PLAIN=n makes operation n a plain one; in pair 4 operations 1 and 4, on the data, are always plain.
   In pair 5 all are plain, and between 3 and 4 the system makes every thread execute a barrier, which empties all buffers; PLAIN=3 omits it.

   Claims: a reader and a writer are not both inside (1); every sleeping waiter was seen (2, 3);
   a thread that sees a tag also sees the data that it publishes (4); a thread inside is seen, or turns back (5). */

#ifndef PAIR
#define PAIR 1
#endif
#ifndef PLAIN
#define PLAIN 0
#endif
#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)

byte memory[2];
chan buffer[2] = [2] of { byte, byte, bool };  /* word, value, and whether this is a seq_cst store */
byte n_seq_cst[2];                             /* the number of such stores in the buffer */

inline store_seq_cst(n, word, value) {
    if
    :: PLAIN == n -> buffer[t] ! word, value, false
    :: else ->
#ifdef WEAK
        atomic { empty(buffer[t]) -> buffer[t] ! word, value, true; n_seq_cst[t]++ }
#else
        atomic { empty(buffer[t]) -> memory[word] = value }
#endif
    fi
}

inline store_release(n, word, value) {
    if
    :: PLAIN == n -> buffer[t] ! word, value, false
    :: else ->
#ifdef WEAK
        atomic { empty(buffer[t]) -> buffer[t] ! word, value, false }
#else
        buffer[t] ! word, value, false
#endif
    fi
}

inline load_seq_cst(n, word) {           /* out: `seen` */
    if
    :: PLAIN == n -> seen = memory[word]
    :: else ->
#ifdef WEAK
        atomic { n_seq_cst[t] == 0 -> seen = memory[word] }
#else
        seen = memory[word]
#endif
    fi
}

proctype Buffer(byte t) {
    byte word, value;
    bool is_seq_cst;
end:
    do
#ifdef WEAK
    :: atomic { buffer[t] ?? 0, value, is_seq_cst -> memory[0] = value; n_seq_cst[t] = n_seq_cst[t] - is_seq_cst; value = 0 }
    :: atomic { buffer[t] ?? 1, value, is_seq_cst -> memory[1] = value; n_seq_cst[t] = n_seq_cst[t] - is_seq_cst; value = 0 }
#else
    :: atomic { buffer[t] ? word, value, is_seq_cst -> memory[word] = value; word = 0; value = 0 }
#endif
    od
}

#if PAIR == 1
/* lock_shared_try and _share_open_gate against lock_exclusive_try, _claim_open_gate and _drain (shmem/_sync/storage_lock.pxd, _sync/storage_lock.pyx);
   and of the same shape inside_begin against sections_depart (shmem/_base/section.pxd, _sections/process.pyx) without barrier_on_all_threads */
#define READERS 0
#define GATE 1
bool reader_is_in = false, writer_is_in = false;

proctype First(byte t) {
    byte seen;
    store_seq_cst(1, READERS, 1);        /* fetch_add_seq_cst_u64(readers, 1) */
    load_seq_cst(2, GATE);               /* load_seq_cst_u64(gate) */
    d_step { if :: seen == 0 -> reader_is_in = true :: else -> REACHED(1) fi; assert(!(reader_is_in && writer_is_in)) }
}

proctype Second(byte t) {
    byte seen;
    store_seq_cst(3, GATE, 1);           /* compare_exchange_seq_cst_u64(gate, 0, me) */
    load_seq_cst(4, READERS);            /* load_seq_cst_u64(readers) */
    d_step { if :: seen == 0 -> writer_is_in = true :: else -> REACHED(2) fi; assert(!(reader_is_in && writer_is_in)) }
}

#elif PAIR == 2 || PAIR == 3
/* 2: unlock_shared against _drain (shmem/_sync/storage_lock.pxd, _sync/storage_lock.pyx).
   3: unlock_exclusive and lock_gate_open against _lock_gate_sleep; and of the same shape mutex_unlock against _mutex_claim, semaphore_signal against
      semaphore_wait (shmem/_sync/primitives.pxd, _sync/primitives.pyx), and _register_upgrade against _drain */
#define CONDITION 0                          /* readers, gate, owner: 1 while the sleeper must wait */
#define CHANNEL 1                            /* 1: registered */
bool sleeps = false, is_woken = false;
byte n_done = 0;

proctype First(byte t) {
    byte seen;
    store_seq_cst(1, CONDITION, 0);      /* fetch_sub_seq_cst_u64(readers, 1), compare_exchange_seq_cst_u64(gate, me, 0) */
    load_seq_cst(2, CHANNEL);            /* channel_notify */
    d_step { is_woken = seen == 1; n_done++; if :: is_woken -> REACHED(1) :: else fi; assert(n_done < 2 || is_woken || !sleeps) }
}

proctype Second(byte t) {
    byte seen;
    store_seq_cst(3, CHANNEL, 1);        /* channel_register */
    load_seq_cst(4, CONDITION);          /* _drain_look, load_seq_cst_u64(gate) */
    d_step { sleeps = seen == 1; n_done++; if :: sleeps -> REACHED(2) :: else fi; assert(n_done < 2 || is_woken || !sleeps) }
}

#elif PAIR == 5
/* inside_begin against sections_depart with barrier_on_all_threads (shmem/_base/section.pxd, _sections/process.pyx) */
#define INSIDE 0
#define LEAVES 1
bool has_entered = false, has_left = false;

proctype First(byte t) {
    byte seen;
    buffer[t] ! INSIDE, 1, false;        /* store_relaxed_u32(&me.inside, 1) */
    seen = memory[LEAVES];
    d_step { if :: seen == 0 -> has_entered = true :: else -> REACHED(1) fi; assert(!(has_entered && has_left)) }
}

proctype Second(byte t) {
    byte seen;
    buffer[t] ! LEAVES, 1, false;        /* store_release_u32(&section.leaves, 1) */
    if
    :: PLAIN == 3
    :: PLAIN != 3 && empty(buffer[0]) && empty(buffer[1])
    fi;
    seen = memory[INSIDE];
    d_step { if :: seen == 0 -> has_left = true :: else -> REACHED(2) fi; assert(!(has_entered && has_left)) }
}

#else
/* 4: heap_commit, hole_split, heap_set_root (store_release_u64) against heap_check_block, _becomes_hole, get_root_object (load_acquire_u64);
   and of the same shape gate_leave (exchange_release_u64) against gate_try (compare_exchange_acquire_u64), shmem/_sync/gate.pxd */
#define DATA 0
#define TAG 1

proctype First(byte t) {
    buffer[t] ! DATA, 1, false;          /* 1: always plain */
    store_release(2, TAG, 1)
}

proctype Second(byte t) {
    byte tag, data;
    if
    :: tag = memory[TAG]; data = memory[DATA]
#ifdef WEAK
    :: PLAIN == 3 -> data = memory[DATA]; tag = memory[TAG]        /* a plain load of the tag does not delay the other load */
#endif
    fi;
    d_step { if :: tag == 1 -> REACHED(1); assert(data == 1) :: else -> REACHED(2) fi }
}
#endif

init {
    atomic {
#if PAIR == 2 || PAIR == 3
        memory[CONDITION] = 1;
#endif
        run First(0); run Second(1); run Buffer(0); run Buffer(1)
    }
}
