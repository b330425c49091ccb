/* The storage lock: shmem/_sync/storage_lock.pxd and shmem/_sync/storage_lock.pyx, with a kill before any step.

   Each inline has the name of the function that it models; `_enter` and `_claim` are split into three: enter_shared, enter_exclusive with
   claim_gate, upgrade with claim_gate_upgrading.  One atomic operation of the code is one step here (d_step, or a
   single statement); a kill takes effect between any two steps.  Channels (_sync/channel.pxd) are exact, except that notifying
   is one step: a kill between its two halves has the effect of a kill before it.  A sleeper checks again by itself (the end of a slice)
   only after a kill, so a wake that is lost without a kill is an invalid end state.  With -DQUIET slices end only when no other step is
   possible, and at most three times per thread; a lock that is never taken over is then an invalid end state, too.

   gown ggen          the gate: owner's entry + 1 and generation       gSR gSW  STARVING      turn n_left  0, READERS_TURN, WRITERS_TURN; readers it is left to
   uown ugen          upgrade                                          egen rd  an entry's word `readers`     blk  its liveness byte
   nR slR frR         channel lock_gate_readers: registrations; thread t asleep; sequence unchanged since t registered
   nW slW frW         lock_gate_writers        nD slD frD  drain       slU  asleep on upgrade
   meant              threads that had registered when the readers' turn began
   nS nX hS hX        threads inside, only for the assertions

   A thread performs one operation (thread 0: N0), chosen from its mask: 1 shared, 2 shared and upgrade, 4 exclusive, 8 exclusive and downgrade.
   IMPATIENT: a mask of threads that may give up at any time; the others wait forever, so that a lost wake shows.

   With -DWHO=t and KILLS=0 all threads loop forever, and Spin searches for a cycle in which t makes no progress (pan -l -f: weak
   fairness), which is starvation.  In this mode a thread that slept in vain sets STARVING, a turn is long enough, and a thread
   that is awake is not overtaken forever between checking the gate and falling asleep (NOT_OUTRUN).

   Threads 0 and 1 share an entry with -DTWO=1.  With -DREUSE=1 an opener takes the entry of the killed process.
   Left out with -DNO_...: STARVING, FLAG_KEPT, WAKE_WRITER, END_TURN, YIELD, TAKE_OVER, OWN, GENERATION, ORDER, WAKE_UPGRADER, DRAIN_NOTIFY. */
#ifndef OPS0
#define OPS0 15
#endif
#ifndef OPS1
#define OPS1 15
#endif
#ifndef OPS2
#define OPS2 15
#endif
#ifndef IMPATIENT
#define IMPATIENT 0
#endif
/* SIGNALS: a mask of threads whose drain is interrupted NSIG times, or always with WATCHED: while signal handlers run, the gate is RESERVED
   (gres).  A handler returns; or releases the claim, because it raises or requests the lock itself; or with HANDLER_WAITS returns only when
   thread 2 is done.  Any waiter may open a reserved gate at any moment.
   Left out with -DNO_BREAK (that), -DNO_CLEAR (clearing RESERVED at a take-over).  With -DGIVE_BACK the drainer opens the gate instead. */
#ifndef SIGNALS
#define SIGNALS 0
#endif
#ifndef NSIG
#define NSIG 1
#endif
#ifdef NO_BREAK
#define MAY_BREAK 0
#else
#define MAY_BREAK gres
#endif
#define INTERRUPTED 7
bool gres, done2;
#ifndef VICTIM
#define VICTIM 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef TWO
#define TWO 0
#endif
#ifndef REUSE
#define REUSE 0
#endif
#ifndef N0                                          /* the number of operations of thread 0; the others perform one */
#define N0 1
#endif
#ifdef QUIET
#define SLICE_ENDS kills > 0 && looks < 3 && timeout
#define LOOKED looks++
#else
#define SLICE_ENDS kills > 0
#define LOOKED skip
#endif
#ifdef WATCHED
#define LIVE 1
#define MAY_LACK_PATIENCE 0
#define NOT_OUTRUN atomic
#define TURN_MAY_END 0
#define FELL_ASLEEP_R skip
#define FELL_ASLEEP_W last = t
#define FELL_ASLEEP_D skip
byte last;
#else
#define LIVE 0
#define WATCHED 99
#define MAY_LACK_PATIENCE 1
#define NOT_OUTRUN
#define TURN_MAY_END 1
#define FELL_ASLEEP_R skip
#define FELL_ASLEEP_W skip
#define FELL_ASLEEP_D skip
#endif
#ifdef NO_STARVING
#define SAY(flag) skip
#else
#define SAY(flag) flag = 1; said = 1
#endif
#ifdef NO_FLAG_KEPT
#define KEEP_FLAG 0
#else
#define KEEP_FLAG (v == WRITERS_TURN && !said && !over)
#endif
#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)
#define NT (3 + REUSE)
#define NE 3
#define READERS_TURN 1
#define WRITERS_TURN 2
#define WOKEN 0
#define SLICE_OVER 1
#define DEADLINE 2
#define TAKEN_OVER 3
#define OK 4
#define TIMED_OUT 5
#define MUST_YIELD 6

byte gown, ggen, turn, n_left; bool gSR, gSW;
byte uown, ugen;
byte egen[NE], rd[NE]; bool blk[NE];
byte nR, nW, nD;
bool slR[NT], frR[NT], slW[NT], frW[NT], slD[NT], frD[NT], slU[NT], meant[NT];
bool kf[NT], inuse[NT]; byte kills, pp[NT], pe[NT];
byte nS, nX; bool hS[NT], hX[NT];
bool opening;

#ifdef NO_GENERATION
#define G(e) 0
#define dead(o, g) (o != 0 && !blk[o - 1])
#else
#define G(e) egen[e]
#define dead(o, g) (o != 0 && (!blk[o - 1] || egen[o - 1] != g))
#endif
#if REUSE
#define ALL(x) x[0] = 0; x[1] = 0; x[2] = 0; x[3] = 0
#define NONE(x) !(x[0] || x[1] || x[2] || x[3])
#define MEANT(x) meant[0] = x[0]; meant[1] = x[1]; meant[2] = x[2]; meant[3] = x[3]
#define ONE_OF(x) if :: x[0] -> x[0] = 0 :: x[1] -> x[1] = 0 :: x[2] -> x[2] = 0 :: x[3] -> x[3] = 0 :: else fi
#else
#define ALL(x) x[0] = 0; x[1] = 0; x[2] = 0
#define NONE(x) !(x[0] || x[1] || x[2])
#define MEANT(x) meant[0] = x[0]; meant[1] = x[1]; meant[2] = x[2]
#if LIVE                                             /* first in, first out; sufficient for two sleepers */
#define ONE_OF(x) if :: x[0] && last != 0 -> x[0] = 0 :: x[1] && last != 1 -> x[1] = 0 :: x[2] && last != 2 -> x[2] = 0 :: else -> x[last] = 0 fi
#else
#define ONE_OF(x) if :: x[0] -> x[0] = 0 :: x[1] -> x[1] = 0 :: x[2] -> x[2] = 0 :: else fi
#endif
#endif

/* -- channels ---------------------------------------------------------------------------------------------------------- */
/* X is R, W or D: lock_gate_readers, lock_gate_writers, drain */
#define channel_register(X) d_step { n##X++; fr##X[t] = 1 }
#define channel_withdraw(X) d_step { if :: fr##X[t] && n##X > 0 -> n##X-- :: else fi; fr##X[t] = 0 }
#define notify_all(X) d_step { if :: n##X > 0 -> n##X = 0; ALL(fr##X); ALL(sl##X) :: else fi }
#define notify_one(X) atomic { if :: n##X > 0 -> n##X--; ALL(fr##X); if :: NONE(sl##X) -> n##X = 0 :: else -> ONE_OF(sl##X) fi :: else fi }
/* a slice of sleep, only of a registered thread; afterwards the thread is not registered */
#define sleep(X) \
  d_step { if :: fr##X[t] -> sl##X[t] = 1; FELL_ASLEEP_##X :: else fi }; \
  if \
  :: atomic { !sl##X[t] -> res = WOKEN } \
  :: atomic { sl##X[t] && SLICE_ENDS -> sl##X[t] = 0; res = SLICE_OVER; LOOKED } \
  :: atomic { sl##X[t] && MAY_BREAK && gown != e + 1 -> sl##X[t] = 0; res = SLICE_OVER } \
  :: atomic { sl##X[t] && may_give_up -> sl##X[t] = 0; res = DEADLINE } \
  fi; \
  if :: res != WOKEN -> channel_withdraw(X) :: else -> d_step { fr##X[t] = 0 } fi

/* -- opening the gate, and taking it over from dead owners ---------------------------------------------------------------- */
inline use_readers_turn() {              /* by a reader that registered with the sequence of the turn */
#ifdef NO_END_TURN
  skip
#else
  d_step {
    if
    :: turn == READERS_TURN && meant[t] && n_left > 1 -> n_left--; meant[t] = 0; w = 0
    :: turn == READERS_TURN && (meant[t] && n_left == 1 || n_left == 0 && registered) -> n_left = 0; ALL(meant); turn = (gSW -> WRITERS_TURN : 0); gSW = 0; w = 1
    :: else -> w = 0
    fi };
  if :: w -> w = 0; REACHED(2); notify_one(W) :: else fi
#endif
}
inline gate_notify() {
#ifndef NO_WAKE_UPGRADER
  notify_all(R);
#endif
#ifndef NO_WAKE_WRITER
  notify_one(W)
#else
  skip
#endif
}
#define OPEN_IT \
    gown = 0; ggen = 0; gres = 0; \
    if \
    :: gSR -> turn = READERS_TURN; n_left = nR; MEANT(frR) \
    :: else -> if :: gSW -> turn = WRITERS_TURN :: else turn = 0 fi; gSW = 0 \
    fi; \
    gSR = 0
/* by a waiter that has seen the same reservation for too long: it opens the gate */
inline _lock_gate_break() {
  d_step { v = gown; vg = ggen; w = gres };
  if
  :: w && v != 0 -> w = 0;
     d_step { if :: gown == v && ggen == vg && gres -> OPEN_IT; w = 1 :: else fi };
     if :: w -> w = 0; REACHED(8); gate_notify() :: else fi
  :: else
  fi; w = 0; v = 0; vg = 0 }
inline _claim_resume() {                      /* result w: the gate is still reserved by this thread */
  d_step { if :: gown == e + 1 && ggen == G(e) && gres -> gres = 0; w = 1 :: else w = 0 fi } }
/* a drain is interrupted: reserve the gate, run the handler, resume.  res OK: it has the gate; WOKEN: lost it; TIMED_OUT: the handler raised */
inline handler() {
  sigs = sigs + !LIVE;
  d_step { assert(gown == e + 1 && ggen == G(e) && !gres); gres = 1 };
  if
#ifdef HANDLER_WAITS
  :: done2 -> _claim_resume(); res = (w -> OK : WOKEN)
#else
  :: _claim_resume(); res = (w -> OK : WOKEN); if :: !w -> REACHED(9) :: else fi
  :: MAY_LACK_PATIENCE -> _claim_resume(); if :: w -> w = 0; lock_gate_open() :: else fi; res = WOKEN          /* the handler requests the lock */
  :: may_give_up -> _claim_resume(); if :: w -> w = 0; lock_gate_open() :: else fi; res = TIMED_OUT            /* it raises */
#endif
  fi; w = 0 }
inline lock_gate_open() {
  d_step {
    assert(gown == e + 1 && !gres);
    OPEN_IT };
  gate_notify() }
#ifdef NO_CLEAR
#define CLEAR skip
#else
#define CLEAR gres = 0
#endif
inline lock_gate_take_over() {
  d_step { v = gown; vg = ggen }; w = dead(v, vg);
#ifdef NO_TAKE_OVER
  w = 0;
#endif
  if :: w -> w = 0; d_step { if :: gown == v && ggen == vg -> gown = e + 1; ggen = G(e); CLEAR; res = TAKEN_OVER :: else fi };
        if :: res == TAKEN_OVER -> REACHED(1); d_step { if :: egen[v - 1] == vg -> rd[v - 1] = 0 :: else fi } :: else fi      /* _drop_share */
     :: else fi;
  v = 0; vg = 0 }
#define lock_gate_sleep(X, flag, starves) \
  d_step { v = gown; vg = ggen }; \
  if \
  :: v == 0 -> res = WOKEN \
  :: v != 0 && may_give_up -> res = DEADLINE; lock_gate_take_over(); if :: res == DEADLINE -> res = TIMED_OUT :: else fi \
  :: v != 0 -> \
     channel_register(X); registered = 1; \
     if :: starves && slept -> d_step { if :: gown == v && ggen == vg -> SAY(flag) :: else w = 1 fi } :: MAY_LACK_PATIENCE || !slept fi; \
     v = 0; vg = 0; \
     if \
     :: w || gown == 0 -> w = 0; channel_withdraw(X); res = WOKEN \
     :: else -> \
        sleep(X); slept = 1; \
        if :: res == SLICE_OVER -> lock_gate_take_over(); if :: res != TAKEN_OVER -> _lock_gate_break() :: else fi :: else fi \
     fi \
  fi; v = 0; vg = 0

/* -- upgrade ---------------------------------------------------------------------------------------------------------------- */
inline wake_upgrade() { d_step { ALL(slU) } }
inline upgrade_clear() { d_step { uown = 0; ugen = 0 }; wake_upgrade() }
inline upgrade_reap() {
  d_step { v = uown; vg = ugen }; w = dead(v, vg);
  if :: w -> d_step { if :: uown == v && ugen == vg -> uown = 0; ugen = 0 :: else fi }; wake_upgrade() :: else fi; w = 0; v = 0; vg = 0 }

/* -- drain: res OK, MUST_YIELD or TIMED_OUT ------------------------------------------------------------------------------------ */
inline drain(own) {
  first = 0; res = WOKEN;
  do
  :: channel_register(D);
     do
     :: first < NE ->
#ifdef NO_ORDER
        w = (first != e && !blk[first]);
        d_step { c = rd[first]; vg = egen[first] };
#else
        d_step { c = rd[first]; vg = egen[first] };
#endif
        if
        :: c <= (first == e -> own : 0) -> first++
        :: c > (first == e -> own : 0) &&
#ifdef NO_OWN
           first == e -> first++
        :: c > 0 && first != e &&
#endif
           first == e -> break
        :: c > 0 && first != e ->
#ifndef NO_ORDER
           w = !blk[first];
#endif
           if
           :: w -> w = 0; REACHED(5); d_step { if :: rd[first] == c && egen[first] == vg -> rd[first] = 0 :: else fi }
           :: else break
           fi
        fi
     :: else -> break
     od;
     c = 0; vg = 0; w = 0;
     if :: first == NE -> res = OK :: else ->
#ifndef NO_YIELD
        if :: own == 0 && uown != 0 -> upgrade_reap(); if :: uown != 0 -> res = MUST_YIELD :: else fi :: else fi;
#endif
        if :: res != MUST_YIELD && may_give_up -> res = TIMED_OUT :: else fi
     fi;
     if :: res == MUST_YIELD -> REACHED(4) :: else fi;
     if :: res == OK || res == MUST_YIELD || res == TIMED_OUT -> channel_withdraw(D); break :: else fi;
     if
     :: ((SIGNALS >> t) & 1) && sigs < NSIG -> channel_withdraw(D); res = INTERRUPTED; break
     :: true -> sleep(D); res = WOKEN
     fi
  od; first = 0 }
inline drain_notify() {
#ifndef NO_DRAIN_NOTIFY
  notify_all(D)
#else
  skip
#endif
}

/* -- claiming the gate: res OK, TIMED_OUT ------------------------------------------------------------------------------------- */
inline claim_open_gate() {                /* by a writer; res OK if it has the gate */
  d_step { v = turn; w = gSW };
  if
  :: v != 0 && !over && !(v == WRITERS_TURN && registered) ->           /* _leave_turn_to_others: TURN_NS at most */
     channel_register(W); registered = 1;
     if :: slept -> d_step { if :: gown == 0 && turn == v -> SAY(gSW) :: else fi } :: MAY_LACK_PATIENCE || !slept fi;
     if
     :: gown != 0 || turn != v -> channel_withdraw(W)
     :: else
        d_step { if :: frW[t] -> slW[t] = 1; FELL_ASLEEP_W :: else fi };
        if :: atomic { !slW[t] -> frW[t] = 0 } :: atomic { slW[t] && TURN_MAY_END -> slW[t] = 0; over = 1 }; channel_withdraw(W) fi;
        slept = 1
     fi
  :: else ->
     if :: v == WRITERS_TURN && !over -> REACHED(3) :: v == READERS_TURN && over -> REACHED(7) :: else fi;
     d_step { if :: gown == 0 && turn == v && gSW == w ->
                    gown = e + 1; ggen = G(e); gSR = (turn == READERS_TURN && nR > 0); turn = 0; n_left = 0; ALL(meant);
                    gSW = gSW || KEEP_FLAG; res = OK
                 :: else fi }
  fi; v = 0; w = 0 }
inline claim_gate() {
  res = WOKEN; registered = 0; over = 0;
  NOT_OUTRUN {
  do
  :: uown != 0 ->
     if
     :: may_give_up -> upgrade_reap(); if :: uown != 0 -> res = TIMED_OUT; break :: else fi
     :: uown != 0 ->
        d_step { if :: uown != 0 -> slU[t] = 1 :: else fi };
        if :: !slU[t] :: atomic { slU[t] && SLICE_ENDS -> slU[t] = 0; LOOKED }; upgrade_reap() :: atomic { slU[t] && may_give_up -> slU[t] = 0 } fi
     :: uown == 0
     fi
  :: uown == 0 && gown == 0 -> claim_open_gate(); if :: res == OK -> break :: else fi
  :: uown == 0 && gown != 0 -> over = 0;
     lock_gate_sleep(W, gSW, 1);
     if :: res == TAKEN_OVER -> res = OK; break :: res == TIMED_OUT -> break :: else fi
  od };
  if
  :: res == TIMED_OUT ->
     if :: gown == 0 -> notify_one(W) :: else fi
  :: else
  fi; registered = 0; slept = 0; said = 0; over = 0 }
inline claim_gate_upgrading() {
  res = WOKEN;
  do
  :: d_step { if :: gown == 0 -> gSR = (turn == READERS_TURN && nR > 0); gown = e + 1; ggen = G(e); turn = 0; n_left = 0; ALL(meant); res = OK :: else fi };
     if
     :: res == OK -> break
     :: else -> lock_gate_sleep(R, gSR, 0);
        if :: res == TAKEN_OVER -> res = OK; break :: res == TIMED_OUT -> break :: else fi
     fi
  od; registered = 0; slept = 0 }

/* -- the operations ----------------------------------------------------------------------------------------------------------- */
inline enter_shared() {
  res = WOKEN;
  rd[e]++;                                            /* lock_shared_try */
  if :: gown == 0 -> res = OK :: else -> rd[e]--; drain_notify() fi;
  NOT_OUTRUN {
  do
  :: res == OK -> break
  :: res != OK && gown == 0 ->
     rd[e]++;
     if
     :: gown == 0 -> use_readers_turn(); res = OK; break
     :: else -> rd[e]--; drain_notify()
     fi
  :: res != OK && gown != 0 ->
     lock_gate_sleep(R, gSR, 1);
     if
     :: res == TAKEN_OVER -> lock_gate_open()
     :: res == TIMED_OUT -> use_readers_turn(); break
     :: else
     fi
  od }; registered = 0; slept = 0 }
inline unlock_shared() { rd[e]--; drain_notify() }
inline enter_exclusive() {
  has_gate = 0;
  do
  :: if :: !has_gate -> claim_gate() :: else fi;
     has_gate = 0;
     if :: res == TIMED_OUT -> break :: else fi;
     drain(0);
     if :: res == OK -> break :: else fi;
#ifdef GIVE_BACK
     if :: res == INTERRUPTED -> sigs = sigs + !LIVE; res = WOKEN :: else fi;
#endif
     if
     :: res == INTERRUPTED -> handler();
        if :: res == TIMED_OUT -> break :: res == OK -> has_gate = 1 :: else fi
     :: else ->
        lock_gate_open();
        if :: res == TIMED_OUT -> break :: else fi
     fi
  od; has_gate = 0 }
inline inside_exclusive(shares) { d_step { hX[t] = 1; nX++; assert(nX == 1 && nS == shares) }; d_step { hX[t] = 0; nX-- } }
inline upgrade() {
  upgrade_reap();                                     /* _register_upgrade */
  d_step { if :: uown == 0 -> uown = e + 1; ugen = G(e); w = 1 :: else w = 0 fi };
  if
  :: w -> w = 0; drain_notify();
     has_gate = 0;
     do
     :: if :: !has_gate -> claim_gate_upgrading() :: else fi;
        has_gate = 0;
        if
        :: res == OK -> drain(1);
           if
           :: res == INTERRUPTED -> sigs = sigs + !LIVE;            /* `upgrade` is kept as well */
              d_step { gres = 1 };
              REACHED(10);
              if
              :: _claim_resume(); has_gate = w; w = 0; res = OK
              :: _claim_resume(); has_gate = w; w = 0; upgrade_clear(); if :: has_gate -> lock_gate_open() :: else fi; res = TIMED_OUT; break    /* it raises */
              fi
           :: else ->
              if :: res == OK -> inside_exclusive(1) :: else fi;
              upgrade_clear(); lock_gate_open(); break
           fi
        :: else -> upgrade_clear(); break
        fi
     od; has_gate = 0
  :: else                                             /* DeadlockError */
  fi }

proctype Thread(byte t; byte p; byte e; byte ops; bool reuses) {
  byte v, vg, c, first, res, n, looks, sigs; bool has_gate, w, registered, slept, said, over, may_give_up;
  {
    if
    :: reuses ->                                      /* participant_take, lock_forget */
       atomic { !opening -> opening = 1 };
       d_step { if :: !blk[e] -> blk[e] = 1; pe[t] = e; inuse[t] = 1; w = 1 :: else w = 0; opening = 0 fi };
       if :: !w -> goto stop :: else w = 0 fi;
       d_step { egen[e]++; rd[e] = 0 };
       d_step { v = gown; vg = ggen };
       if
       :: v == e + 1 && vg != G(e) -> d_step { if :: gown == v && ggen == vg -> ggen = G(e); CLEAR; w = 1 :: else fi }
       :: else
       fi;
       d_step { if :: uown == e + 1 && ugen != G(e) -> uown = 0; ugen = 0 :: else fi }; wake_upgrade();
       if :: w -> w = 0; REACHED(6); lock_gate_open() :: else fi;
       drain_notify();
       v = 0; vg = 0; opening = 0
    :: else
    fi;
    do
    :: (LIVE || n < (t == 0 -> N0 : 1)) && ops != 0 -> n = n + !LIVE;
       may_give_up = (IMPATIENT >> t) & 1;
       if
       :: ops & 3 ->
          enter_shared();
          if
          :: res == OK ->
             d_step { hS[t] = 1; nS++; assert(nX == 0) };
             if :: ops & 2 -> upgrade() :: ops & 1 fi;
             d_step { hS[t] = 0; nS-- };
             unlock_shared()
          :: else
          fi
       :: ops & 12 ->
          enter_exclusive();
          if
          :: res == OK -> inside_exclusive(0);
             if
             :: ops & 8 -> rd[e]++; d_step { hS[t] = 1; nS++ }; lock_gate_open(); d_step { hS[t] = 0; nS-- }; unlock_shared()
             :: ops & 4 -> lock_gate_open()
             fi
          :: else
          fi
       fi; res = 0;
       if :: t == WATCHED -> progress: skip :: else fi
    :: else -> break
    od;
    if :: t == 2 -> done2 = 1 :: else fi
  } unless { kf[p] };
stop: skip;
  if :: t == 2 -> done2 = 1 :: else fi;
  d_step { sigs = 0; has_gate = 0; v = 0; vg = 0; c = 0; first = 0; res = 0; n = 0; looks = 0; w = 0; registered = 0; slept = 0; said = 0; over = 0; may_give_up = 0 } }

/* process q dies: its threads, the locks they hold (for the assertions) and its liveness byte go; registrations stay */
inline gone(x) {
  if
  :: inuse[x] && pp[x] == q ->
     if :: hS[x] -> hS[x] = 0; nS-- :: else fi; if :: hX[x] -> hX[x] = 0; nX-- :: else fi;
     slR[x] = 0; slW[x] = 0; slD[x] = 0; slU[x] = 0; frR[x] = 0; frW[x] = 0; frD[x] = 0; inuse[x] = 0; blk[pe[x]] = 0
  :: else
  fi }
proctype Killer(byte q) {
  d_step { if :: inuse[q] -> kf[q] = 1; kills++; gone(0); gone(1); gone(2);
#if REUSE
    gone(3);
#endif
    opening = 0 :: else fi } }

init {
  d_step {
    pe[0] = 0; pp[0] = 0; inuse[0] = 1; blk[0] = 1;
#if TWO
    pe[1] = 0; pp[1] = 0;
#else
    pe[1] = 1; pp[1] = 1; blk[1] = 1;
#endif
    inuse[1] = 1;
    pe[2] = 2; pp[2] = 2; inuse[2] = 1; blk[2] = 1
#if REUSE
    ; pp[3] = 3
#endif
  };
  atomic {
    run Thread(0, 0, pe[0], OPS0, 0); run Thread(1, pp[1], pe[1], OPS1, 0); run Thread(2, 2, 2, OPS2, 0);
#if REUSE
    run Thread(3, 3, 2, OPS2, 1);
#endif
#if KILLS
    run Killer(VICTIM)
#endif
  } }
