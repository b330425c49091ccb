/* A name table that grows, shmem/_heap/name_growth.pyx: each change moves a slot of the old table to the new one, then inserts or removes
   a name.  All is done by the owner of the heap gate.  It may be killed before any step, and so may the process that recovers; the take-over
   itself is modelled in heap_gate.pml.

   Claims, whenever the gate is free: each name is in one slot; a name that was not removed is found; the counts are right; a table that is
   not in use is free; all names have moved when the old table is freed.

   Seeded errors: SLOT_CLEARED_FIRST, CURSOR_FIRST, DUPLICATES_STAY, COUNTS_STAY, DROPPED_EARLY, DROPPED_WITHOUT_INTENT,
   LOOK_UP_NEW_ONLY. */

#define N_OLD 3                  /* slots */
#define N_NEW 6
#define N_NAMES 4
#define EMPTY 0
#define REMOVED 9
#define N_CHANGES 5
#ifndef N_KILLS
#define N_KILLS 2
#endif

byte old_slot[N_OLD], new_slot[N_NEW];           /* EMPTY, REMOVED, or the entry of a name */
byte old_live, new_live, cursor;
bool anchor_is_new, in_motion;                   /* in_motion: old_off of the new table is not 0 */
bool old_is_used = true, new_is_used;
byte intent;                                     /* 0, SHOW or DROP */
#define SHOW 1
#define DROP 2
bool is_name[N_NAMES + 1];                       /* what users have done: changed with the store that decides */
byte kills, n_changes;

#ifndef REACH
#define REACH 0
#endif
#define REACHED(n) assert(REACH != n)
#define MAY_DIE atomic { if :: true :: kills < N_KILLS -> kills++; goto killed fi }
#define SHOWS(slot) (slot != EMPTY && slot != REMOVED)

inline count_shown(name) {       /* out: `n`, in both tables */
    n = 0;
    for (k : 0 .. N_OLD - 1) { if :: old_is_used && (in_motion || !anchor_is_new) && old_slot[k] == name -> n++ :: else fi }
    for (k : 0 .. N_NEW - 1) { if :: anchor_is_new && new_slot[k] == name -> n++ :: else fi }
}

inline check_all() {             /* heap_check: shmem/_heap/verify.pyx */
    atomic {
        for (j : 1 .. N_NAMES) { count_shown(j); assert(n == is_name[j]) }
        n = 0;
        for (k : 0 .. N_OLD - 1) { if :: SHOWS(old_slot[k]) -> n++ :: else fi }
        assert(!old_is_used || n == old_live);
        n = 0;
        for (k : 0 .. N_NEW - 1) { if :: SHOWS(new_slot[k]) -> n++ :: else fi }
        assert(n == new_live);
        assert(new_is_used == anchor_is_new);
        assert(old_is_used == (in_motion || !anchor_is_new));
        n = 0; k = 0; j = 0
    }
}

inline find_free() {             /* out: `i`, a slot of the new table */
    atomic {
        i = 0;
        do :: SHOWS(new_slot[i]) -> i++ :: else -> break od
    }
}

inline find(name) {              /* names_find: shmem/_heap/name_slots.pyx; out: `n`, slot + 1, above N_NEW in the old table; 0: none */
    atomic {
        n = 0;
        for (k : 0 .. N_NEW - 1) { if :: new_slot[k] == name -> n = k + 1 :: else fi };
#ifndef LOOK_UP_NEW_ONLY
        for (k : 0 .. N_OLD - 1) { if :: n == 0 && in_motion && old_slot[k] == name -> n = N_NEW + k + 1 :: else fi };
#endif
        k = 0
    }
}

inline show_table() {            /* _show_table; the new table is PENDING, and its old_off is set */
    intent = SHOW;
    MAY_DIE;
    d_step { anchor_is_new = true; in_motion = true };
    MAY_DIE;
    new_is_used = true;
    MAY_DIE;
    intent = 0
}

inline move_slot() {             /* _move_slot, then the cursor */
#ifdef CURSOR_FIRST
    cursor++;
    MAY_DIE;
#endif
    if
    :: SHOWS(old_slot[moved]) ->
        find_free();
        new_live++;
        MAY_DIE;
#ifdef SLOT_CLEARED_FIRST
        n = old_slot[moved];
        old_slot[moved] = REMOVED;
        MAY_DIE;
        new_slot[i] = n;
#else
        new_slot[i] = old_slot[moved];
        MAY_DIE;
        REACHED(1);
        old_slot[moved] = REMOVED;
#endif
        MAY_DIE;
        old_live--;
        i = 0; n = 0
    :: else
    fi;
    MAY_DIE;
#ifndef CURSOR_FIRST
    cursor++;
#endif
    MAY_DIE
}

inline drop_old() {              /* _drop_old */
#ifndef DROPPED_WITHOUT_INTENT
    intent = DROP;
    MAY_DIE;
#endif
    in_motion = false;
    MAY_DIE;
    REACHED(2);
    old_is_used = false;
    MAY_DIE;
    intent = 0
}

inline move_some() {             /* names_move_some */
    if
    :: in_motion && cursor < N_OLD -> moved = cursor; move_slot()
    :: else
    fi;
    moved = 0;
#ifdef DROPPED_EARLY
    if :: in_motion && cursor >= N_OLD - 1 -> drop_old() :: else fi
#else
    if :: in_motion && cursor >= N_OLD -> drop_old() :: else fi
#endif
}

inline insert(name) {            /* _insert_once */
    find(name);
    if
    :: n == 0 ->
        find_free();
        d_step { new_slot[i] = name; is_name[name] = true };
        MAY_DIE;
        new_live++
    :: else -> assert(is_name[name])         /* NameExists */
    fi
}

inline remove(name) {            /* _hide_entry */
    find(name);
    if
    :: n > N_NEW ->
        REACHED(3);
        d_step { old_slot[n - N_NEW - 1] = REMOVED; is_name[name] = false };
        MAY_DIE;
        old_live--
    :: n > 0 && n <= N_NEW ->
        d_step { new_slot[n - 1] = REMOVED; is_name[name] = false };
        MAY_DIE;
        new_live--
    :: else -> assert(!is_name[name])        /* KeyError */
    fi
}

inline recover() {               /* heap_recover, names_recount */
    if
    :: intent == SHOW ->
        if :: anchor_is_new -> new_is_used = true :: else fi
    :: intent == DROP ->
        if :: !in_motion -> old_is_used = false :: else fi
    :: else
    fi;
    MAY_DIE;
    intent = 0;
    MAY_DIE;
#ifndef DUPLICATES_STAY
    i = 0;
    do
    :: in_motion && i < N_OLD ->
        atomic {
            n = 0;
            for (k : 0 .. N_NEW - 1) { if :: SHOWS(old_slot[i]) && new_slot[k] == old_slot[i] -> n++ :: else fi };
            k = 0
        };
        if :: n > 0 -> REACHED(4); old_slot[i] = REMOVED; MAY_DIE :: else fi;
        i++
    :: else -> break
    od;
#endif
#ifndef COUNTS_STAY
    atomic {
        old_live = 0; new_live = 0;
        for (k : 0 .. N_OLD - 1) { if :: SHOWS(old_slot[k]) -> old_live++ :: else fi };
        for (k : 0 .. N_NEW - 1) { if :: SHOWS(new_slot[k]) -> new_live++ :: else fi };
        k = 0
    };
#endif
    i = 0; n = 0
}

active proctype Owner() {
    byte i, j, k, n, moved, name;
    atomic {
        old_slot[0] = 1; old_slot[1] = 2; old_slot[2] = 3; old_live = 3;
        is_name[1] = true; is_name[2] = true; is_name[3] = true
    };
next:
    check_all();
    n_changes++;
    if
    :: n_changes > N_CHANGES -> goto over
    :: n_changes <= N_CHANGES && !anchor_is_new -> show_table()
    :: n_changes <= N_CHANGES && anchor_is_new ->
        select (name : 1 .. N_NAMES);
        move_some();
        MAY_DIE;
        if :: insert(name) :: remove(name) fi
    fi;
    i = 0; n = 0; name = 0;
    goto next;
killed:
    i = 0; n = 0; k = 0; moved = 0; name = 0;
    recover();
    goto next;
over:
    skip
}
