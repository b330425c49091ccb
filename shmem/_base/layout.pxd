# cython: language_level=3
"""Every struct that lies in a section, with asserted offsets.

`accessors.pxd` has one-line accessors.  `layout.pyx` exports the structs to Python; `docs/format.md` describes the file format.

The section::

    page 0          header: identity, offsets of the parts, then the hot words, each on a cache line of its own
    pages           participants: one 64-byte entry each, then one 64-byte intent record each
    pages           free-block index: TLSF or next-fit, and the lists of cached blocks
    pages           heap blocks, from `heap_start` to `top`; what lies above `top` is meaningless

A block::

    offset          +8             +16 (payload, 16-byte aligned)                  size-8      size
    | tag           | serial word  | payload ....................................... | rear      |
                      serial 0..55   hole and cached block: next, previous offset       size,
                      slack 56..61                                                     sealed
                      names 62..63

A tag has one of two formats.  The size decides which, so two tags of one block are equal if they mean the same::

    wide     state 0..2   0     size 4..47                                  type 48..63
    small    state 0..2   1     size 4..10   gated 11   serial 12..47       type 48..63     PENDING, USED of up to 2,032 bytes

* `tag` is authoritative.  HOLE: type 0.  PENDING: the type field holds the index of the participant that is
  making the block.  USED: the type field holds the type id.  CACHED: freed, but kept whole in a list; type 0.
* The serial in a small tag is the low 36 bits of the block's serial.  A compare-and-swap of such a tag therefore cannot hit another block
  that has the place by now.  One load shows state and serial.
* `gated` is set, under the heap gate, before a name or the root leads to a small block, and before it is resized in place.  It is never
  cleared while the block lives.  It marks the blocks whose end must go through the heap gate.
* `serial` is meaningful in PENDING and USED.  A serial never repeats in the life of a section.
* `slack` is the number of payload bytes at the end that were not requested: the whole payload minus `Block.nbytes`.  It is at most 56:
  24 in the smallest block, and 32 of a remainder too small for a hole.
* `names` is an index: how many names of the directory lead to the block, where 3 means three or more.  An array counts them exactly in
  its header, and leaves this field 0.
* `rear` is derived from the tag: `size ^ salt ^ end * golden`.  It is meaningful in every state.
* Nothing here is a pointer: `..._off` is an offset from the start of the section.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef SHMEM_LAYOUT
    #define SHMEM_LAYOUT
    #include <stddef.h>
    #include <stdint.h>

    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "shmem cannot be built for a big-endian processor: the words of a section are little-endian (docs/porting.md)"
    #endif
    #if __SIZEOF_POINTER__ != 8
    #error "shmem cannot be built for a 32-bit processor: a section needs 64-bit addresses (docs/porting.md)"
    #endif

    #define PAGE_BYTES 4096u
    #define LINE_BYTES 64u
    #define MAX_SECTION_BYTES ((uint64_t)1 << 46)   /* of max_size, when a section is made */
    #define END_OF_ADDRESSES ((uint64_t)1 << 47)    /* of a process */

    #define MAGIC_BEING_MADE 0x57454e4d454d4853ull  /* "SHMEMNEW" */
    #define MAGIC            0x0a1a314d454d4853ull  /* "SHMEM1\\x1a\\n" */
    #define LAYOUT_VERSION 3u

    #define CHANGE_CHANNELS 64u
    #define PIN_SLOTS 64u
    #define PIN_SLOT_SHIFT 48
    #define PIN_SLOT_OFF_MASK 0x0000fffffffffff0ull
    #define PIN_SLOT_UNNAMED 1ull                   /* as PIN_UNNAMED in a record */

    typedef struct {
        uint64_t magic;               /* written last */
        uint32_t version;
        uint32_t header_bytes;
        uint64_t fingerprint;         /* of the structs here: layout_fingerprint() */
        uint64_t salt;
        uint8_t uuid[16];
        char label[208];              /* NUL-terminated, at most 200 bytes */
        uint64_t max_size;
        uint64_t desired_address;     /* 0: any address */
        uint32_t index_kind;
        uint32_t max_participants;
        uint32_t clean;               /* 1: the last participant left the section cleanly */
        uint32_t broken;              /* 1: the chain cannot be walked */
        char boot_id[40];
        uint64_t participants_off;
        uint64_t intents_off;
        uint64_t index_off;
        uint64_t heap_start;
        uint64_t root_off;            /* payload, or 0 */
        uint64_t directory_off;       /* payload of a name table, or 0 */
        uint64_t types_off;           /* payload of a name table, or 0 */
        uint8_t spare0[64];

        /* heap, changed only under the heap gate */
        uint64_t top;                 /* one store commits growth and shrinking */
        uint64_t reserved;            /* file system backing exists below this */
        uint64_t high_water;          /* never written above this: known to be zero */
        uint64_t next_serial;
        uint64_t reserve_gate;        /* a gate of its own: its owner reserves backing, or returns it */
        uint8_t spare1[24];

        uint64_t lock_gate;           /* line of its own, with the notice of a dead holder */
        uint64_t owner_deaths;
        uint32_t death_notice;        /* 1: a holder died, and the next holder has not been warned yet */
        uint32_t spare2;
        uint64_t lock_gate_readers;   /* channels, see _sync/channel.pxd: readers and the upgrader sleep here until the gate opens, */
        uint64_t lock_gate_writers;   /* writers here */
        uint8_t spare3[24];
        uint64_t upgrade;             /* line of its own */
        uint8_t spare4[56];
        uint64_t drain;               /* line of its own; a channel: the owner of the gate sleeps here until the readers have left */
        uint8_t spare8[56];
        uint64_t heap_gate;           /* line of its own */
        uint8_t spare5[56];
        uint64_t used_blocks;         /* line of its own: statistics, an index */
        uint64_t used_bytes;
        uint64_t hole_blocks;
        uint64_t hole_bytes;
        uint64_t cached_blocks;
        uint64_t cached_bytes;
        uint64_t recoveries;
        uint64_t name_blocks;         /* groups, and tables and entries of names; an index */
        uint32_t participants_high;   /* line of its own: bounds every scan */
        uint8_t spare7[60];
        uint64_t change_count;        /* line of its own; the last version that a name was given */
        uint64_t n_claims;            /* claims in the list; an index, as the list and `claimed_bytes` */
        uint64_t claims_until;        /* boot clock: no claim that was made so far keeps an anonymous section beyond this */
        uint64_t doomed_off;          /* payload of a group that was deleted and is yet to be emptied, or 0; an index */
        uint64_t attributes_off;      /* payload of a name table, or 0 */
        uint64_t claims_off;          /* payload of the claim that was made last, or 0 */
        uint64_t claims_boot;         /* hash of `boot_id` when the claims were made */
        uint64_t claimed_bytes;       /* in the blocks of arrays with claims */
        uint64_t room_bytes;          /* line of its own */
        uint64_t backing_off;
        uint64_t unbacked_pages;
        uint64_t types_version;       /* the last type id that was given; 0: none yet */
        uint64_t pins_off;            /* payload of the first record of pins, or 0; this and the two counts are an index */
        uint64_t n_pin_records;
        uint64_t n_pin_slots;         /* words of `pin_slots` that are in use */
        uint8_t spare10[8];
        uint64_t change_channels[CHANGE_CHANNELS];   /* threads that wait for a change of a name sleep here */
        uint64_t pin_slots[PIN_SLOTS];       /* pins without a record: participant << 48 | payload of the block | PIN_SLOT_UNNAMED; or 0 */
    } header_t;
    _Static_assert(offsetof(header_t, magic) == 0, "layout");
    _Static_assert(offsetof(header_t, version) == 8, "layout");
    _Static_assert(offsetof(header_t, fingerprint) == 16, "layout");
    _Static_assert(offsetof(header_t, salt) == 24, "layout");
    _Static_assert(offsetof(header_t, uuid) == 32, "layout");
    _Static_assert(offsetof(header_t, label) == 48, "layout");
    _Static_assert(offsetof(header_t, max_size) == 256, "layout");
    _Static_assert(offsetof(header_t, desired_address) == 264, "layout");
    _Static_assert(offsetof(header_t, index_kind) == 272, "layout");
    _Static_assert(offsetof(header_t, clean) == 280, "layout");
    _Static_assert(offsetof(header_t, boot_id) == 288, "layout");
    _Static_assert(offsetof(header_t, participants_off) == 328, "layout");
    _Static_assert(offsetof(header_t, root_off) == 360, "layout");
    _Static_assert(offsetof(header_t, types_off) == 376, "layout");
    _Static_assert(offsetof(header_t, top) == 448, "layout");
    _Static_assert(offsetof(header_t, reserve_gate) == 480, "layout");
    _Static_assert(offsetof(header_t, lock_gate) == 512, "layout");
    _Static_assert(offsetof(header_t, lock_gate_readers) == 536, "layout");
    _Static_assert(offsetof(header_t, upgrade) == 576, "layout");
    _Static_assert(offsetof(header_t, drain) == 640, "layout");
    _Static_assert(offsetof(header_t, heap_gate) == 704, "layout");
    _Static_assert(offsetof(header_t, used_blocks) == 768, "layout");
    _Static_assert(offsetof(header_t, name_blocks) == 824, "layout");
    _Static_assert(offsetof(header_t, participants_high) == 832, "layout");
    _Static_assert(offsetof(header_t, change_count) == 896, "layout");
    _Static_assert(offsetof(header_t, claims_off) == 936, "layout");
    _Static_assert(offsetof(header_t, room_bytes) == 960, "layout");
    _Static_assert(offsetof(header_t, pins_off) == 992, "layout");
    _Static_assert(offsetof(header_t, change_channels) == 1024, "layout");
    _Static_assert(offsetof(header_t, pin_slots) == 1536, "layout");
    _Static_assert(sizeof(header_t) == 2048 && sizeof(header_t) <= PAGE_BYTES, "layout");

    typedef struct {
        uint64_t readers;             /* generation << 32 | threads that hold the lock shared */
        uint32_t attached;            /* 0: left; 1: taken, and its former owner cleaned up after; 2: taken; 3: rests, at exit with views */
        uint32_t pending;             /* upper bound for the number of its PENDING blocks */
        uint32_t pins;                /* upper bound for the number of blocks that it pins */
        uint32_t waiting;             /* threads asleep on the storage lock: for stats() */
        uint64_t pid;                 /* for diagnostics only */
        uint64_t magazine_off;        /* reserved: no version of the library uses it yet */
        uint64_t room_bytes;          /* reserved */
        uint64_t log_off;             /* reserved */
        uint32_t claims;              /* claims that it has sent and that are open, an index */
        uint8_t spare[4];
    } participant_t;
    _Static_assert(offsetof(participant_t, readers) == 0, "layout");
    _Static_assert(offsetof(participant_t, attached) == 8, "layout");
    _Static_assert(offsetof(participant_t, pending) == 12, "layout");
    _Static_assert(offsetof(participant_t, pins) == 16, "layout");
    _Static_assert(offsetof(participant_t, pid) == 24, "layout");
    _Static_assert(offsetof(participant_t, claims) == 56, "layout");
    _Static_assert(sizeof(participant_t) == LINE_BYTES, "layout");

    typedef struct {                  /* see _heap/intents.pxd */
        uint64_t operation;           /* 0: none; written last, cleared last */
        uint64_t slot_off;
        uint64_t value;
        uint64_t make_off[2];
        uint64_t drop_off[2];
        uint64_t slot2_off;           /* of INTENT_SWAP_TWO */
    } intent_t;
    _Static_assert(offsetof(intent_t, operation) == 0, "layout");
    _Static_assert(offsetof(intent_t, make_off) == 24, "layout");
    _Static_assert(offsetof(intent_t, drop_off) == 40, "layout");
    _Static_assert(sizeof(intent_t) == LINE_BYTES, "layout");

    typedef struct {
        uint64_t tag;
        uint64_t serial;              /* names << 62 | slack << 56 | serial */
        uint64_t next_off;            /* from here on payload; links of a hole or cached block */
        uint64_t previous_off;
    } block_t;
    _Static_assert(offsetof(block_t, tag) == 0, "layout");
    _Static_assert(offsetof(block_t, serial) == 8, "layout");
    _Static_assert(offsetof(block_t, next_off) == 16, "layout");
    _Static_assert(offsetof(block_t, previous_off) == 24, "layout");

    #define BLOCK_HEAD_BYTES 16u
    #define BLOCK_REAR_BYTES 8u
    #define BLOCK_MIN_BYTES 48u
    #define BLOCK_ALIGN_BYTES 16u
    #define BLOCK_MAX_ALIGN_BYTES 4096u
    #define TAG_STATE_MASK 7ull
    #define TAG_SMALL 8ull                /* the small format */
    #define TAG_GATED 0x800ull            /* small format only */
    #define TAG_SIZE_MASK 0x0000fffffffffff0ull
    #define TAG_SMALL_SIZE_MASK 0x7f0ull  /* also the largest size of the small format */
    #define TAG_SERIAL_SHIFT 12
    #define TAG_SERIAL_MASK 0x0000000fffffffffull
    #define TAG_TYPE_SHIFT 48
    #define SERIAL_MASK 0x00ffffffffffffffull
    #define SLACK_SHIFT 56
    #define SLACK_MASK 0x3full
    #define NAMES_SHIFT 62
    #define NAMES_MANY 3ull               /* three names or more */
    #define GOLDEN 0x9e3779b97f4a7c15ull  /* 2**64 / golden ratio, odd: spreads offsets and names */

    #define TLSF_FIRST_LEVELS 40
    #define TLSF_SECOND_SHIFT 5
    #define TLSF_SECOND_LEVELS 32
    #define CACHE_BINS 64
    typedef struct {
        uint64_t cache_off[CACHE_BINS];      /* bin i: blocks of (i + 3) * 16 bytes */
        uint32_t cache_count[CACHE_BINS];
        uint64_t rover_off;                  /* next-fit: the hole at which the next search starts, 0 when no hole */
        uint64_t first_bitmap;               /* TLSF */
        uint32_t second_bitmap[TLSF_FIRST_LEVELS];
        uint64_t head_off[TLSF_FIRST_LEVELS][TLSF_SECOND_LEVELS];
    } free_index_t;
    _Static_assert(offsetof(free_index_t, cache_count) == 512, "layout");
    _Static_assert(offsetof(free_index_t, rover_off) == 768, "layout");
    _Static_assert(offsetof(free_index_t, first_bitmap) == 776, "layout");
    _Static_assert(offsetof(free_index_t, second_bitmap) == 784, "layout");
    _Static_assert(offsetof(free_index_t, head_off) == 944, "layout");
    _Static_assert(sizeof(free_index_t) == 11184, "layout");
    #define INDEX_BYTES 12288u

    typedef struct {                  /* payload of a name table; slots follow */
        uint64_t capacity;            /* a power of two */
        uint64_t filled;              /* slots that are not empty, an index */
        uint64_t live;                /* slots that show an entry, an index */
        uint64_t old_off;             /* payload of the table that this one replaces, until its entries are moved; or 0 */
        uint64_t cursor;              /* slots of the old table that are moved */
        uint64_t kind;                /* reserved: 0 */
    } name_table_t;
    typedef struct { uint64_t hash; uint64_t entry_off; } name_slot_t;
    typedef struct {                  /* payload of a name; name bytes, then data bytes, follow */
        uint64_t value;               /* directory: payload offset; types: type id */
        uint64_t serial;              /* directory: serial of the named block; another block may have its place by now */
        uint64_t version;             /* directory: never repeats, whatever the name */
        uint32_t name_bytes;
        uint32_t data_bytes;
    } name_entry_t;
    _Static_assert(sizeof(name_table_t) == 48 && sizeof(name_slot_t) == 16 && sizeof(name_entry_t) == 32, "layout");
    #define SLOT_EMPTY 0u
    #define SLOT_REMOVED 1u

    typedef struct {                  /* payload of a group of names */
        uint64_t table_off;           /* payload of its name table, or 0 */
        uint64_t next_doomed_off;     /* the next group in the list that begins at `doomed_off`, an index */
        uint64_t cursor;              /* slots of the table that were looked at while it is emptied, an index */
        uint8_t spare[8];
    } group_t;
    _Static_assert(offsetof(group_t, cursor) == 16 && sizeof(group_t) == 32, "layout");

    #define FNV_BASIS 0xcbf29ce484222325ull
    #define FNV_PRIME 0x100000001b3ull
    #define NAME_HASH_FACTOR 0xff51afd7ed558ccdull
    /* FNV-1a, then the first half of the finalizer of MurmurHash3 */
    static inline uint64_t hash_name(const char *text, size_t n_bytes) {
        uint64_t hash = FNV_BASIS;
        for (size_t i = 0; i < n_bytes; i++) hash = (hash ^ (unsigned char)text[i]) * FNV_PRIME;
        hash = (hash ^ hash >> 33) * NAME_HASH_FACTOR;
        return hash ^ hash >> 33;
    }

    typedef struct {                  /* payload of an array; then shape, strides, pins, dtype text, maximum shape if it grows; data last */
        uint64_t data_off;            /* from the payload's start, a multiple of 64 */
        uint64_t data_bytes;          /* 0 in an array that can grow: its rows are counted by the shape */
        uint32_t flags;
        uint16_t n_dims;
        uint16_t dtype_bytes;
        uint32_t n_pin_words;
        uint32_t n_names;             /* names of the directory that lead here, an index */
        uint32_t n_claims;            /* claims of messages that refer to it, an index */
        uint32_t n_more_pins;         /* from here on reserved: 0 */
        uint64_t capacity_bytes;      /* room for rows, from `data_off` on; 0: the array cannot grow */
        uint64_t append_gate;         /* owner's word of the participant that changes the shape, see _heap/array_gate.pyx */
        uint8_t spare[8];
    } array_t;
    _Static_assert(offsetof(array_t, flags) == 16, "layout");
    _Static_assert(offsetof(array_t, n_pin_words) == 24, "layout");
    _Static_assert(sizeof(array_t) == 64, "layout");
    #define ARRAY_TEMPORARY 1u        /* freed with its last pin */
    #define ARRAY_UNNAMED 2u          /* its last name was deleted: freed with its last pin */
    #define ARRAY_SEALED 8u           /* views that are opened from now on are read-only */
    #define UNLIMITED (~(uint64_t)0)  /* in a maximum shape */

    typedef struct {                  /* payload of a record of pins; pin bits follow, as many words as in an array */
        uint64_t target_off;          /* payload of the pinned block, which is not an array */
        uint64_t serial;              /* PIN_UNNAMED | serial of that block */
        uint64_t child_off[2];        /* payloads of records, an index: see _heap/pins.pyx */
    } pin_record_t;
    _Static_assert(offsetof(pin_record_t, child_off) == 16 && sizeof(pin_record_t) == 32, "layout");
    #define PIN_UNNAMED ((uint64_t)1 << 63)   /* the block's last name was deleted: it is freed with its last pin */

    typedef struct {                  /* payload of a claim, by which a message keeps an array: see _heap/claims.pyx */
        uint64_t target_off;          /* payload of the array */
        uint64_t serial;              /* of the array's block */
        uint64_t sender;              /* its owner word; 0: it has left, or was found dead */
        uint64_t made_at;             /* nanoseconds of the boot clock */
        uint64_t expires_at;          /* the same, 0: never */
        uint64_t next_off;            /* payloads of the claims made before and after it, an index */
        uint64_t previous_off;
    } claim_t;
    _Static_assert(offsetof(claim_t, sender) == 16 && offsetof(claim_t, next_off) == 40 && sizeof(claim_t) == 56, "layout");
    #define CLAIM_ENDS 1u             /* in `previous_off`: recovery frees the claim */

    /* Synchronisation primitives: the payload of a block, a field of an object, or the state in the file of a named one.
       All zero: a semaphore of value 0, an event that is not signaled, a mutex that is free. */
    #define CHANNEL_WAITERS_SHIFT 32  /* in a channel and in an event's word: registered waiters from this bit on */
    typedef struct {
        uint32_t value;
        uint32_t spare;
        uint64_t channel;             /* see _sync/channel.pxd */
    } semaphore_t;
    _Static_assert(offsetof(semaphore_t, channel) == 8 && sizeof(semaphore_t) == 16, "layout");
    typedef struct {
        uint64_t word;                /* 1: signaled | number of signals, times 2; waiters in the high half */
    } event_t;
    _Static_assert(sizeof(event_t) == 8, "layout");
    typedef struct {
        uint64_t owner;               /* generation << 32 | index + 1, or 0 */
        uint64_t channel;
        uint64_t thread;              /* from here on the owner's alone: thread pointer */
        uint64_t next_held_off;       /* next of the mutexes that this thread holds, latest first; 0: the end of the list */
        uint32_t depth;
        uint32_t died;                /* free: 1: the last owner died without releasing it, and the next owner has not been warned yet; */
                                      /* owned: the owner's task, see _bridge/tasks.pxd, or 0 */
        uint64_t owner_deaths;
    } mutex_t;
    _Static_assert(offsetof(mutex_t, channel) == 8 && offsetof(mutex_t, thread) == 16, "layout");
    _Static_assert(offsetof(mutex_t, next_held_off) == 24 && offsetof(mutex_t, depth) == 32, "layout");
    _Static_assert(offsetof(mutex_t, owner_deaths) == 40 && sizeof(mutex_t) == 48, "layout");

    typedef struct {                  /* payload of a queue, see _sync/ring.pyx; pin bits, the text of the dtype and the slots follow */
        uint64_t capacity;            /* slots */
        uint64_t slot_bytes;
        uint64_t record_bytes;        /* of an item; of the longest byte string */
        uint64_t data_off;            /* of the slots, from the payload's start */
        uint32_t kind;
        uint32_t type_id;             /* of a Struct class */
        uint32_t text_bytes;
        uint32_t closed;              /* 1: shut down; written under the producers' gate */
        uint32_t n_pin_words;
        uint8_t spare0[12];
        uint64_t producers_gate;      /* line of its own, with words that only its owner uses */
        uint64_t head_seen;           /* the last value of `head` that a producer saw: never ahead of it */
        uint8_t spare1[48];
        uint64_t tail;                /* line of its own: number of items ever put */
        uint8_t spare2[56];
        uint64_t consumers_gate;      /* line of its own, with words that only its owner uses */
        uint64_t tail_seen;
        uint8_t spare3[48];
        uint64_t head;                /* line of its own: number of items ever taken */
        uint8_t spare4[56];
        uint64_t not_empty;           /* line of its own: channel on which consumers sleep */
        uint8_t spare5[56];
        uint64_t not_full;            /* line of its own: channel on which producers sleep */
        uint8_t spare6[56];
    } queue_t;
    _Static_assert(offsetof(queue_t, kind) == 32 && offsetof(queue_t, closed) == 44 && offsetof(queue_t, n_pin_words) == 48, "layout");
    _Static_assert(offsetof(queue_t, producers_gate) == 64 && offsetof(queue_t, tail) == 128, "layout");
    _Static_assert(offsetof(queue_t, consumers_gate) == 192 && offsetof(queue_t, head) == 256, "layout");
    _Static_assert(offsetof(queue_t, not_empty) == 320 && offsetof(queue_t, not_full) == 384, "layout");
    _Static_assert(sizeof(queue_t) == 448, "layout");

    #define NAMED_MAGIC 0x1a534d454d4853ull   /* "SHMEMS\x1a": a named semaphore or event */
    #define NAMED_VERSION 1u
    #define NAMED_SEMAPHORE 1u
    #define NAMED_EVENT 2u
    typedef union { semaphore_t semaphore; event_t event; uint8_t line[64]; } named_state_t;
    typedef struct {                  /* the file of a named semaphore or event */
        uint64_t magic;
        uint32_t version;
        uint32_t kind;
        uint8_t uuid[16];
        uint8_t spare[32];
        named_state_t state;
    } named_t;
    _Static_assert(offsetof(named_t, uuid) == 16 && offsetof(named_t, state) == 64 && sizeof(named_t) == 128, "layout");

    /* FNV-1a over the facts in which another build could differ */
    static inline uint64_t layout_fingerprint(void) {
        const uint64_t facts[] = {
            LAYOUT_VERSION, sizeof(header_t), offsetof(header_t, max_size), offsetof(header_t, heap_start),
            offsetof(header_t, top), offsetof(header_t, lock_gate), offsetof(header_t, upgrade), offsetof(header_t, drain),
            offsetof(header_t, heap_gate), offsetof(header_t, used_blocks), offsetof(header_t, participants_high),
            sizeof(participant_t), offsetof(participant_t, pending), sizeof(intent_t), offsetof(intent_t, drop_off),
            sizeof(block_t), BLOCK_MIN_BYTES, sizeof(free_index_t), INDEX_BYTES, CACHE_BINS, TLSF_FIRST_LEVELS,
            TLSF_SECOND_LEVELS, TAG_SMALL_SIZE_MASK, sizeof(name_table_t), sizeof(name_entry_t), sizeof(group_t), sizeof(array_t),
            offsetof(array_t, append_gate),
            offsetof(header_t, name_blocks),
            sizeof(pin_record_t), offsetof(header_t, pins_off), offsetof(header_t, pin_slots), sizeof(claim_t),
            offsetof(header_t, claims_off), offsetof(participant_t, claims),
            sizeof(semaphore_t), sizeof(event_t), sizeof(mutex_t),
            sizeof(queue_t), offsetof(queue_t, n_pin_words), offsetof(queue_t, tail), offsetof(queue_t, head),
            offsetof(queue_t, not_full) };
        uint64_t hash = FNV_BASIS;
        for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) hash = (hash ^ facts[i]) * FNV_PRIME;
        return hash;
    }
    #endif
    """
    const uint64_t MAGIC_BEING_MADE
    const uint64_t MAGIC
    const uint32_t LAYOUT_VERSION
    const size_t PAGE_BYTES
    const size_t LINE_BYTES
    const uint64_t MAX_SECTION_BYTES
    const uint64_t END_OF_ADDRESSES

    enum: CHANGE_CHANNELS

    ctypedef struct header_t:
        uint64_t magic
        uint32_t version
        uint32_t header_bytes
        uint64_t fingerprint
        uint64_t salt
        uint8_t uuid[16]
        char label[208]
        uint64_t max_size
        uint64_t desired_address
        uint32_t index_kind
        uint32_t max_participants
        uint32_t clean
        uint32_t broken
        char boot_id[40]
        uint64_t participants_off
        uint64_t intents_off
        uint64_t index_off
        uint64_t heap_start
        uint64_t root_off
        uint64_t directory_off
        uint64_t types_off
        uint64_t top
        uint64_t reserved
        uint64_t high_water
        uint64_t next_serial
        uint64_t reserve_gate
        uint64_t lock_gate
        uint64_t owner_deaths
        uint32_t death_notice
        uint64_t lock_gate_readers
        uint64_t lock_gate_writers
        uint64_t upgrade
        uint64_t drain
        uint64_t heap_gate
        uint64_t used_blocks
        uint64_t used_bytes
        uint64_t hole_blocks
        uint64_t hole_bytes
        uint64_t cached_blocks
        uint64_t cached_bytes
        uint64_t recoveries
        uint64_t name_blocks
        uint32_t participants_high
        uint64_t change_count
        uint64_t n_claims
        uint64_t claims_until
        uint64_t doomed_off
        uint64_t attributes_off
        uint64_t claims_off
        uint64_t claims_boot
        uint64_t claimed_bytes
        uint64_t room_bytes
        uint64_t backing_off
        uint64_t unbacked_pages
        uint64_t types_version
        uint64_t pins_off
        uint64_t n_pin_records
        uint64_t n_pin_slots
        uint64_t change_channels[CHANGE_CHANNELS]
        uint64_t pin_slots[64]

    ctypedef struct participant_t:
        uint64_t readers
        uint32_t attached
        uint32_t pending
        uint32_t pins
        uint32_t waiting
        uint64_t pid
        uint64_t magazine_off
        uint64_t room_bytes
        uint64_t log_off
        uint32_t claims

    ctypedef struct intent_t:
        uint64_t operation
        uint64_t slot_off
        uint64_t value
        uint64_t make_off[2]
        uint64_t drop_off[2]
        uint64_t slot2_off

    ctypedef struct block_t:
        uint64_t tag
        uint64_t serial
        uint64_t next_off
        uint64_t previous_off

    const size_t BLOCK_HEAD_BYTES
    const size_t BLOCK_REAR_BYTES
    const size_t BLOCK_MIN_BYTES
    const size_t BLOCK_ALIGN_BYTES
    const size_t BLOCK_MAX_ALIGN_BYTES
    const uint64_t TAG_STATE_MASK
    const uint64_t TAG_SMALL
    const uint64_t TAG_GATED
    const uint64_t TAG_SIZE_MASK
    const uint64_t TAG_SMALL_SIZE_MASK
    const int TAG_SERIAL_SHIFT
    const uint64_t TAG_SERIAL_MASK
    const int TAG_TYPE_SHIFT
    const uint64_t SERIAL_MASK
    const int SLACK_SHIFT
    const uint64_t SLACK_MASK
    const int NAMES_SHIFT
    const uint64_t NAMES_MANY
    const uint64_t GOLDEN

    enum: TLSF_FIRST_LEVELS
    enum: TLSF_SECOND_SHIFT
    enum: TLSF_SECOND_LEVELS
    enum: CACHE_BINS
    const size_t INDEX_BYTES

    ctypedef struct free_index_t:
        uint64_t cache_off[CACHE_BINS]
        uint32_t cache_count[CACHE_BINS]
        uint64_t rover_off
        uint64_t first_bitmap
        uint32_t second_bitmap[TLSF_FIRST_LEVELS]
        uint64_t head_off[TLSF_FIRST_LEVELS][TLSF_SECOND_LEVELS]

    ctypedef struct name_table_t:
        uint64_t capacity
        uint64_t filled
        uint64_t live
        uint64_t old_off
        uint64_t cursor
        uint64_t kind

    ctypedef struct name_slot_t:
        uint64_t hash
        uint64_t entry_off

    ctypedef struct name_entry_t:
        uint64_t value
        uint64_t serial
        uint64_t version
        uint32_t name_bytes
        uint32_t data_bytes

    const uint64_t SLOT_EMPTY
    const uint64_t SLOT_REMOVED

    ctypedef struct group_t:
        uint64_t table_off
        uint64_t next_doomed_off
        uint64_t cursor

    const uint64_t FNV_BASIS
    const uint64_t FNV_PRIME
    const uint64_t NAME_HASH_FACTOR

    uint64_t hash_name(const char* text, size_t n_bytes) noexcept nogil

    ctypedef struct array_t:
        uint64_t data_off
        uint64_t data_bytes
        uint32_t flags
        uint16_t n_dims
        uint16_t dtype_bytes
        uint32_t n_pin_words
        uint32_t n_names
        uint32_t n_claims
        uint32_t n_more_pins
        uint64_t capacity_bytes
        uint64_t append_gate

    const uint32_t ARRAY_TEMPORARY
    const uint32_t ARRAY_UNNAMED
    const uint32_t ARRAY_SEALED
    const uint64_t UNLIMITED

    ctypedef struct pin_record_t:
        uint64_t target_off
        uint64_t serial
        uint64_t child_off[2]

    const uint64_t PIN_UNNAMED

    ctypedef struct claim_t:
        uint64_t target_off
        uint64_t serial
        uint64_t sender
        uint64_t made_at
        uint64_t expires_at
        uint64_t next_off
        uint64_t previous_off

    const uint64_t CLAIM_ENDS
    enum: PIN_SLOTS
    const int PIN_SLOT_SHIFT
    const uint64_t PIN_SLOT_OFF_MASK
    const uint64_t PIN_SLOT_UNNAMED

    const int CHANNEL_WAITERS_SHIFT

    ctypedef struct semaphore_t:
        uint32_t value
        uint64_t channel

    ctypedef struct event_t:
        uint64_t word

    ctypedef struct mutex_t:
        uint64_t owner
        uint64_t channel
        uint64_t thread
        uint64_t next_held_off
        uint32_t depth
        uint32_t died
        uint64_t owner_deaths

    ctypedef struct queue_t:
        uint64_t capacity
        uint64_t slot_bytes
        uint64_t record_bytes
        uint64_t data_off
        uint32_t kind
        uint32_t type_id
        uint32_t text_bytes
        uint32_t closed
        uint32_t n_pin_words
        uint64_t producers_gate
        uint64_t head_seen
        uint64_t tail
        uint64_t consumers_gate
        uint64_t tail_seen
        uint64_t head
        uint64_t not_empty
        uint64_t not_full

    const uint64_t NAMED_MAGIC
    const uint32_t NAMED_VERSION
    const uint32_t NAMED_SEMAPHORE
    const uint32_t NAMED_EVENT

    ctypedef union named_state_t:
        semaphore_t semaphore
        event_t event

    ctypedef struct named_t:
        uint64_t magic
        uint32_t version
        uint32_t kind
        uint8_t uuid[16]
        named_state_t state

    uint64_t layout_fingerprint() noexcept nogil

cdef enum:
    MAX_LABEL_BYTES = 200
    MAX_NAME_BYTES = 65535
    MAX_PARTICIPANTS = 65534       # index + 1 lies in the 16 bits of OWNER_INDEX_MASK; 0xffff is not used
    MAX_DIMS = 64                  # numpy's limit
    SEMAPHORE_MAX = 0x7fffffff
    EVENT_SIGNALED = 1             # the lowest bit of an event's word

cdef enum IndexKind:
    INDEX_TLSF = 1
    INDEX_NEXT_FIT = 2

cdef enum BlockState:
    STATE_HOLE = 1
    STATE_PENDING = 2
    STATE_USED = 3
    STATE_CACHED = 4
    STATE_DOOMED = 5               # freed, and kept until no participant pins it
    STATE_LAST = 5

cdef enum TypeId:
    TYPE_PLAIN = 0
    TYPE_ARRAY = 1
    TYPE_NAME_TABLE = 2
    TYPE_NAME_ENTRY = 3
    TYPE_SEMAPHORE = 4
    TYPE_EVENT = 5
    TYPE_MUTEX = 6
    TYPE_QUEUE = 7
    TYPE_GROUP = 9
    TYPE_CLAIM = 10
    TYPE_PINS = 13
    TYPE_FIRST_USER = 16
    TYPE_LAST_USER = 65535

cdef enum IntentOperation:         # the low 16 bits of `operation`; above them the types of the two blocks to make
    INTENT_NONE = 0
    INTENT_SWAP_SLOT = 1
    INTENT_RESIZE = 2
    INTENT_MOVE = 3
    INTENT_SHRINK = 4
    INTENT_SWAP_TWO = 5
    INTENT_FIRST_TYPE_SHIFT = 16
    INTENT_SECOND_TYPE_SHIFT = 32

cdef enum QueueKind:
    QUEUE_RECORDS = 1              # slots hold records of one size, side by side
    QUEUE_BYTES = 2                # slots hold a length word and as many bytes
    QUEUE_STRUCT = 3               # as records; the records are objects of a Struct class
