/* The death of a reader, which shmem/_sync/storage_lock.pyx:_entry_is_empty and shmem/_base/participants.pyx:participant_take both may find.
   The reader is dead from the start, and its share is left.  A writer owns the gate and drains; a newcomer takes the entry of the reader.
   The newcomer may be killed before any step; then the writer goes on alone.

   Claims: the writer, which is the next holder, finds the notice; the death is counted at most once, and once if the newcomer lives.

   Seeded errors: NOTICE_LATE (set after the shares are cleared), BLIND_STORE (shares are cleared without comparing). */

byte share = 1;                  /* the count in `readers` of the entry */
byte generation = 1;             /* its high half */
bool locked = false;             /* the entry's liveness byte */
bool notice = false;
byte counted = 0;
bool killed = false;
byte ended = 0;
bool writer_cleared = false;     /* only for REACH */

proctype Writer() {              /* _drain, and what the holder does first */
    byte seen; bool cleared;
    do
    :: d_step { seen = share };
       if
       :: seen == 0 -> break
       :: seen != 0 && !locked ->
#ifndef NOTICE_LATE
          notice = true;
#endif
          d_step { if :: share == seen && generation == 1 -> share = 0; cleared = true :: else fi };
          if
          :: cleared ->
#ifdef NOTICE_LATE
             notice = true;
#endif
             counted++; writer_cleared = true; break
          :: else
          fi
       :: seen != 0 && locked -> locked == false || share == 0       /* sleeps for a slice, or until it is notified */
       fi
    od;
    assert(notice);
    ended++
}

proctype Newcomer() {            /* participant_take, lock_forget */
    byte former; bool swapped;
    {
        locked = true;
        do
        :: d_step { former = share };
#ifndef NOTICE_LATE
           if :: former != 0 -> notice = true :: else fi;
#endif
#ifdef BLIND_STORE
           d_step { share = 0; generation = 2; swapped = true };
#else
           d_step { if :: share == former -> share = 0; generation = 2; swapped = true :: else fi };
#endif
           if :: swapped -> break :: else fi
        od;
        if
        :: former != 0 ->
#ifdef NOTICE_LATE
           notice = true;
#endif
           counted++
        :: else
        fi;
        goto end
    } unless { killed };
    locked = false;
end: ended++
}

active proctype Kill() { if :: killed = true :: true fi }

init {
    run Writer(); run Newcomer();
    ended == 2;
#ifdef REACH                     /* 1: the writer clears the shares before the newcomer begins its generation; 2: the newcomer does; 3: killed between */
    if
    :: REACH == 1 && generation == 2 && counted == 1 && writer_cleared -> assert(REACH != 1)
    :: REACH == 2 && counted == 1 && !writer_cleared -> assert(REACH != 2)
    :: REACH == 3 && counted == 0 -> assert(REACH != 3)
    :: else
    fi
#endif
    assert(counted <= 1 && (counted == 1 || killed))
}
