# cython: language_level=3
"""The layout of a section for Python: the structs and constants of `layout.pxd`, exported once from C.

Tools and tests read this table; none of them repeats an offset, a size or a limit::

    from shmem._base.layout import LAYOUT, PAGE_BYTES

    top = LAYOUT["header_t"]["top"]
    top.offset, top.size, top.ctype         # 448, 8, 'uint64'
    top.read(content)                       # the value in the bytes of a file
    top.write(image, 4096)                  # the same in a writable buffer
    LAYOUT["block_t"]["serial"].at(offset)  # the place of a field of the block at `offset`

Every constant is an attribute of this module under its C name.  `CONSTANTS` maps the names to the values.
"""

import os
import struct
from collections.abc import Mapping
from typing import NamedTuple

from libc.stdint cimport uint64_t

from shmem._base.accessors cimport (
    control_bytes, seal, tag_has_right_format, tag_make, tag_make_free, tag_size, tag_state, tag_type, type_is_internal)
from shmem._base.layout cimport (
    ARRAY_SEALED, ARRAY_TEMPORARY, ARRAY_UNNAMED, BLOCK_ALIGN_BYTES, BLOCK_HEAD_BYTES, BLOCK_MAX_ALIGN_BYTES, BLOCK_MIN_BYTES,
    BLOCK_REAR_BYTES, CACHE_BINS, CHANGE_CHANNELS, CHANNEL_WAITERS_SHIFT, CLAIM_ENDS, END_OF_ADDRESSES, EVENT_SIGNALED, FNV_BASIS,
    FNV_PRIME, GOLDEN, INDEX_BYTES, INDEX_NEXT_FIT, INDEX_TLSF, INTENT_FIRST_TYPE_SHIFT, INTENT_MOVE, INTENT_NONE, INTENT_RESIZE,
    INTENT_SECOND_TYPE_SHIFT, INTENT_SHRINK, INTENT_SWAP_SLOT, INTENT_SWAP_TWO, LAYOUT_VERSION, LINE_BYTES, MAGIC, MAGIC_BEING_MADE,
    MAX_DIMS, MAX_LABEL_BYTES, MAX_NAME_BYTES, MAX_PARTICIPANTS, MAX_SECTION_BYTES, NAMED_EVENT, NAMED_MAGIC, NAMED_SEMAPHORE,
    NAMED_VERSION, NAMES_MANY, NAMES_SHIFT, NAME_HASH_FACTOR, PAGE_BYTES, PIN_SLOTS, PIN_SLOT_OFF_MASK, PIN_SLOT_SHIFT, PIN_SLOT_UNNAMED,
    PIN_UNNAMED, QUEUE_BYTES, QUEUE_RECORDS, QUEUE_STRUCT, SEMAPHORE_MAX, SERIAL_MASK, SLACK_MASK, SLACK_SHIFT, SLOT_EMPTY, SLOT_REMOVED,
    STATE_CACHED, STATE_DOOMED, STATE_HOLE, STATE_PENDING, STATE_USED, TAG_GATED, TAG_SERIAL_MASK, TAG_SERIAL_SHIFT, TAG_SIZE_MASK,
    TAG_SMALL, TAG_SMALL_SIZE_MASK, TAG_STATE_MASK, TAG_TYPE_SHIFT, TLSF_FIRST_LEVELS, TLSF_SECOND_LEVELS, TLSF_SECOND_SHIFT, TYPE_ARRAY,
    TYPE_CLAIM, TYPE_EVENT, TYPE_FIRST_USER, TYPE_GROUP, TYPE_LAST_USER, TYPE_MUTEX, TYPE_NAME_ENTRY, TYPE_NAME_TABLE, TYPE_PINS,
    TYPE_PLAIN, TYPE_QUEUE, TYPE_SEMAPHORE, UNLIMITED, hash_name, layout_fingerprint)
from shmem._base.owner cimport GATE_WAITERS, OWNER_GENERATION_SHIFT, OWNER_INDEX_MASK, READERS_COUNT_MASK
from shmem._base.participants cimport GUEST_BYTE, LIVENESS_BYTE, NAMING_BITS, NAMING_BYTE, OPENING_BYTE
from shmem._base.section cimport MAX_THREADS

cdef extern from *:
    """
    typedef struct { const char *structure, *field, *type; size_t offset, size, n_bytes; } layout_row_t;

    /* the type of a field's elements: an array decays to a pointer to them */
    #define ELEMENT(m, with) _Generic((m), \\
        uint64_t: with("uint64", 8), uint64_t *: with("uint64", 8), uint64_t (*)[TLSF_SECOND_LEVELS]: with("uint64", 8), \\
        uint32_t: with("uint32", 4), uint32_t *: with("uint32", 4), uint16_t: with("uint16", 2), \\
        uint8_t *: with("uint8", 1), char *: with("char", 1), named_state_t: with("named_state_t", sizeof(named_state_t)))
    #define ELEMENT_NAME(name, size) name
    #define ELEMENT_SIZE(name, size) size
    #define TEXT_(x) #x
    #define TEXT(x) TEXT_(x)
    #define STRUCT() {TEXT(S), NULL, NULL, 0, sizeof(S), 0}
    #define FIELD(f) {TEXT(S), #f, ELEMENT(((S *)0)->f, ELEMENT_NAME), offsetof(S, f), sizeof(((S *)0)->f), \\
        ELEMENT(((S *)0)->f, ELEMENT_SIZE)}

    static const layout_row_t layout_rows[] = {
    #define S header_t
        STRUCT(), FIELD(magic), FIELD(version), FIELD(header_bytes), FIELD(fingerprint), FIELD(salt), FIELD(uuid), FIELD(label),
        FIELD(max_size), FIELD(desired_address), FIELD(index_kind), FIELD(max_participants), FIELD(clean), FIELD(broken), FIELD(boot_id),
        FIELD(participants_off), FIELD(intents_off), FIELD(index_off), FIELD(heap_start), FIELD(root_off), FIELD(directory_off),
        FIELD(types_off), FIELD(spare0), FIELD(top), FIELD(reserved), FIELD(high_water), FIELD(next_serial), FIELD(reserve_gate),
        FIELD(spare1), FIELD(lock_gate), FIELD(owner_deaths), FIELD(death_notice), FIELD(spare2), FIELD(lock_gate_readers),
        FIELD(lock_gate_writers), FIELD(spare3), FIELD(upgrade), FIELD(spare4), FIELD(drain), FIELD(spare8), FIELD(heap_gate),
        FIELD(spare5),
        FIELD(used_blocks), FIELD(used_bytes), FIELD(hole_blocks), FIELD(hole_bytes), FIELD(cached_blocks), FIELD(cached_bytes),
        FIELD(recoveries), FIELD(name_blocks), FIELD(participants_high), FIELD(spare7), FIELD(change_count), FIELD(n_claims),
        FIELD(claims_until), FIELD(doomed_off), FIELD(attributes_off), FIELD(claims_off), FIELD(claims_boot),
        FIELD(claimed_bytes), FIELD(room_bytes), FIELD(backing_off), FIELD(unbacked_pages), FIELD(types_version), FIELD(pins_off),
        FIELD(n_pin_records), FIELD(n_pin_slots), FIELD(spare10),
        FIELD(change_channels), FIELD(pin_slots),
    #undef S
    #define S participant_t
        STRUCT(), FIELD(readers), FIELD(attached), FIELD(pending), FIELD(pins), FIELD(waiting), FIELD(pid), FIELD(magazine_off),
        FIELD(room_bytes), FIELD(log_off), FIELD(claims), FIELD(spare),
    #undef S
    #define S intent_t
        STRUCT(), FIELD(operation), FIELD(slot_off), FIELD(value), FIELD(make_off), FIELD(drop_off), FIELD(slot2_off),
    #undef S
    #define S free_index_t
        STRUCT(), FIELD(cache_off), FIELD(cache_count), FIELD(rover_off), FIELD(first_bitmap), FIELD(second_bitmap), FIELD(head_off),
    #undef S
    #define S block_t
        STRUCT(), FIELD(tag), FIELD(serial), FIELD(next_off), FIELD(previous_off),
    #undef S
    #define S name_table_t
        STRUCT(), FIELD(capacity), FIELD(filled), FIELD(live), FIELD(old_off), FIELD(cursor), FIELD(kind),
    #undef S
    #define S name_slot_t
        STRUCT(), FIELD(hash), FIELD(entry_off),
    #undef S
    #define S name_entry_t
        STRUCT(), FIELD(value), FIELD(serial), FIELD(version), FIELD(name_bytes), FIELD(data_bytes),
    #undef S
    #define S group_t
        STRUCT(), FIELD(table_off), FIELD(next_doomed_off), FIELD(cursor), FIELD(spare),
    #undef S
    #define S array_t
        STRUCT(), FIELD(data_off), FIELD(data_bytes), FIELD(flags), FIELD(n_dims), FIELD(dtype_bytes), FIELD(n_pin_words), FIELD(n_names),
        FIELD(n_claims), FIELD(n_more_pins), FIELD(capacity_bytes), FIELD(append_gate), FIELD(spare),
    #undef S
    #define S pin_record_t
        STRUCT(), FIELD(target_off), FIELD(serial), FIELD(child_off),
    #undef S
    #define S claim_t
        STRUCT(), FIELD(target_off), FIELD(serial), FIELD(sender), FIELD(made_at), FIELD(expires_at), FIELD(next_off), FIELD(previous_off),
    #undef S
    #define S semaphore_t
        STRUCT(), FIELD(value), FIELD(spare), FIELD(channel),
    #undef S
    #define S event_t
        STRUCT(), FIELD(word),
    #undef S
    #define S mutex_t
        STRUCT(), FIELD(owner), FIELD(channel), FIELD(thread), FIELD(next_held_off), FIELD(depth), FIELD(died), FIELD(owner_deaths),
    #undef S
    #define S queue_t
        STRUCT(), FIELD(capacity), FIELD(slot_bytes), FIELD(record_bytes), FIELD(data_off), FIELD(kind), FIELD(type_id), FIELD(text_bytes),
        FIELD(closed), FIELD(n_pin_words), FIELD(spare0), FIELD(producers_gate), FIELD(head_seen), FIELD(spare1), FIELD(tail),
        FIELD(spare2), FIELD(consumers_gate), FIELD(tail_seen), FIELD(spare3), FIELD(head), FIELD(spare4), FIELD(not_empty), FIELD(spare5),
        FIELD(not_full), FIELD(spare6),
    #undef S
    #define S named_t
        STRUCT(), FIELD(magic), FIELD(version), FIELD(kind), FIELD(uuid), FIELD(spare), FIELD(state),
    #undef S
    };
    #define N_LAYOUT_ROWS (sizeof layout_rows / sizeof *layout_rows)
    """
    ctypedef struct layout_row_t:
        const char* structure
        const char* field
        const char* type
        size_t offset
        size_t size
        size_t n_bytes

    const layout_row_t* layout_rows
    const size_t N_LAYOUT_ROWS

_CODES = {"uint64": "Q", "uint32": "I", "uint16": "H"}


class Field:
    """A field of a struct.

    Attributes
    ----------
    name : str
    offset : int
        In bytes, from the start of the struct.
    size : int
        In bytes, of the whole field.
    ctype : str
        Type of an element: "uint64", "uint32", "uint16", "uint8", "char" or the name of a nested type.
    count : int
        Number of elements; 1 for a scalar.
    end : int
        Offset of the first byte after the field.
    """

    __slots__ = ("name", "offset", "size", "ctype", "count", "end", "_format")

    def __init__(self, name, offset, size, ctype, count):
        self.name, self.offset, self.size, self.ctype, self.count = name, offset, size, ctype, count
        self.end = offset + size
        self._format = struct.Struct(f"<{count}{_CODES[ctype]}" if ctype in _CODES else f"{size}s")

    def __repr__(self):
        return f"Field({self.name!r}, offset={self.offset}, size={self.size}, ctype={self.ctype!r}, count={self.count})"

    def at(self, start):
        """Return the offset of the field in a struct that begins at `start`."""
        return start + self.offset

    def read(self, content, start=0):
        """Return the value in a struct that begins at `start`.

        Parameters
        ----------
        content : bytes-like
        start : int, optional
            Offset of the struct in `content`, in bytes.

        Returns
        -------
        int, tuple of int or bytes
            A tuple for an array of numbers; bytes for texts and nested types.
        """
        found = self._format.unpack_from(content, start + self.offset)
        return found[0] if len(found) == 1 else found

    def write(self, content, value, start=0):
        """Store a value, as `read` returns it, in a struct that begins at `start`."""
        self._format.pack_into(content, start + self.offset, *(value if isinstance(value, tuple) else (value,)))

    def read_file(self, fd, start=0):
        """Return the value in a struct that begins at `start` of the file behind a descriptor."""
        return self.read(os.pread(fd, self.size, start + self.offset), -self.offset)

    def write_file(self, fd, value, start=0):
        """Store a value, as `read` returns it, in a struct that begins at `start` of the file behind a descriptor."""
        os.pwrite(fd, self._format.pack(*(value if isinstance(value, tuple) else (value,))), start + self.offset)


class StructLayout(Mapping):
    """The fields of a struct by name, in the order of their offsets.

    Attributes
    ----------
    name : str
    size : int
        In bytes.
    """

    def __init__(self, name, size):
        self.name, self.size, self._fields = name, size, {}

    def __getitem__(self, name):
        return self._fields[name]

    def __iter__(self):
        return iter(self._fields)

    def __len__(self):
        return len(self._fields)

    def __repr__(self):
        return f"StructLayout({self.name!r}, size={self.size}, fields={list(self)})"

    def read(self, content, start=0):
        """Return the values of all fields of the struct that begins at `start`, as a dict by name."""
        return {name: field.read(content, start) for name, field in self._fields.items()}

    def name_at(self, offset):
        """Return the name of the field that contains a byte, or None."""
        for name, field in self._fields.items():
            if field.offset <= offset < field.end:
                return name
        return None


def _structs():
    cdef size_t i
    cdef layout_row_t row
    found = {}
    for i in range(N_LAYOUT_ROWS):
        row = layout_rows[i]
        structure = row.structure.decode()
        if row.field == NULL:
            found[structure] = StructLayout(structure, row.size)
        else:
            name = row.field.decode()
            found[structure]._fields[name] = Field(name, row.offset, row.size, row.type.decode(), row.size // row.n_bytes)
    return found


def heap_start(max_participants):
    """Return the offset of the first block of a section: the size of everything before the heap, in bytes."""
    return control_bytes(max_participants)


def rear_tag(salt, size_bytes, end_off):
    """Return the rear tag of a block; with the rear tag in place of the size, return the size.

    Parameters
    ----------
    salt : int
        The `salt` of the header.
    size_bytes : int
        Size of the block in bytes.
    end_off : int
        Offset of the first byte after the block.
    """
    return seal(salt, size_bytes, end_off)


def make_tag(size_bytes, state, type_id=TYPE_PLAIN, serial=0):
    """Return the front tag of a block.

    Parameters
    ----------
    size_bytes : int
        Size of the block in bytes.
    state : int
        STATE_HOLE, STATE_PENDING, STATE_USED, STATE_CACHED or STATE_DOOMED.
    type_id : int, optional
        Type of a used block, or the index of the participant that makes a pending one.
    serial : int, optional
        Serial number of the block, or its serial word.
    """
    if state in (STATE_HOLE, STATE_CACHED):
        return tag_make_free(size_bytes, state)
    return tag_make(size_bytes, state, type_id, serial)


class Tag(NamedTuple):
    """What a front tag says.

    Attributes
    ----------
    serial : int or None
        The low 36 bits of the block's serial number; None in the wide format.
    is_right : bool
        Whether the tag has the format that its size and state demand.
    """

    size: int
    state: int
    type_id: int
    serial: int | None
    is_gated: bool
    is_right: bool


def read_tag(tag):
    """Return a front tag, a 64-bit number, as a `Tag`."""
    serial = tag >> TAG_SERIAL_SHIFT & TAG_SERIAL_MASK if tag & TAG_SMALL else None
    return Tag(tag_size(tag), tag_state(tag), tag_type(tag), serial, bool(tag & TAG_SMALL and tag & TAG_GATED),
               tag_has_right_format(tag))


def name_hash(bytes name):
    """Return the hash by which a name is found in a name table."""
    return hash_name(name, len(name))


LAYOUT = _structs()
INTERNAL_TYPES = tuple([type_id for type_id in range(TYPE_FIRST_USER) if type_is_internal(type_id)])    # of the library's own blocks
FINGERPRINT = layout_fingerprint()
CONSTANTS = dict(
    # identity
    MAGIC=MAGIC, MAGIC_BEING_MADE=MAGIC_BEING_MADE, LAYOUT_VERSION=LAYOUT_VERSION, FINGERPRINT=FINGERPRINT,
    # sizes and limits
    PAGE_BYTES=PAGE_BYTES, LINE_BYTES=LINE_BYTES, INDEX_BYTES=INDEX_BYTES, MAX_LABEL_BYTES=MAX_LABEL_BYTES, MAX_NAME_BYTES=MAX_NAME_BYTES,
    MAX_PARTICIPANTS=MAX_PARTICIPANTS, MAX_THREADS=MAX_THREADS, MAX_SECTION_BYTES=MAX_SECTION_BYTES, END_OF_ADDRESSES=END_OF_ADDRESSES,
    MAX_DIMS=MAX_DIMS,
    # bytes of the file that processes lock
    OPENING_BYTE=<uint64_t>OPENING_BYTE, LIVENESS_BYTE=<uint64_t>LIVENESS_BYTE, GUEST_BYTE=<uint64_t>GUEST_BYTE,
    NAMING_BYTE=<uint64_t>NAMING_BYTE, NAMING_BITS=NAMING_BITS,
    # the word of an owner, and `readers`
    OWNER_INDEX_MASK=OWNER_INDEX_MASK, OWNER_GENERATION_SHIFT=OWNER_GENERATION_SHIFT, GATE_WAITERS=<uint64_t>GATE_WAITERS,
    READERS_COUNT_MASK=<uint64_t>READERS_COUNT_MASK,
    # blocks
    BLOCK_HEAD_BYTES=BLOCK_HEAD_BYTES, BLOCK_REAR_BYTES=BLOCK_REAR_BYTES, BLOCK_MIN_BYTES=BLOCK_MIN_BYTES,
    BLOCK_ALIGN_BYTES=BLOCK_ALIGN_BYTES, BLOCK_MAX_ALIGN_BYTES=BLOCK_MAX_ALIGN_BYTES, TAG_STATE_MASK=TAG_STATE_MASK,
    TAG_SMALL=TAG_SMALL, TAG_GATED=TAG_GATED, TAG_SIZE_MASK=TAG_SIZE_MASK, TAG_SMALL_SIZE_MASK=TAG_SMALL_SIZE_MASK,
    TAG_SERIAL_SHIFT=TAG_SERIAL_SHIFT, TAG_SERIAL_MASK=TAG_SERIAL_MASK, TAG_TYPE_SHIFT=TAG_TYPE_SHIFT, SERIAL_MASK=SERIAL_MASK,
    SLACK_SHIFT=SLACK_SHIFT, SLACK_MASK=SLACK_MASK, NAMES_SHIFT=NAMES_SHIFT, NAMES_MANY=NAMES_MANY, GOLDEN=GOLDEN,
    STATE_HOLE=STATE_HOLE, STATE_PENDING=STATE_PENDING, STATE_USED=STATE_USED, STATE_CACHED=STATE_CACHED,
    STATE_DOOMED=STATE_DOOMED,
    # types
    TYPE_PLAIN=TYPE_PLAIN, TYPE_ARRAY=TYPE_ARRAY, TYPE_NAME_TABLE=TYPE_NAME_TABLE, TYPE_NAME_ENTRY=TYPE_NAME_ENTRY,
    TYPE_SEMAPHORE=TYPE_SEMAPHORE, TYPE_EVENT=TYPE_EVENT, TYPE_MUTEX=TYPE_MUTEX, TYPE_QUEUE=TYPE_QUEUE, TYPE_FIRST_USER=TYPE_FIRST_USER,
    TYPE_LAST_USER=TYPE_LAST_USER, TYPE_GROUP=TYPE_GROUP, TYPE_CLAIM=TYPE_CLAIM, TYPE_PINS=TYPE_PINS,
    # the free-block index
    INDEX_TLSF=INDEX_TLSF, INDEX_NEXT_FIT=INDEX_NEXT_FIT, CACHE_BINS=CACHE_BINS, TLSF_FIRST_LEVELS=TLSF_FIRST_LEVELS,
    TLSF_SECOND_SHIFT=TLSF_SECOND_SHIFT, TLSF_SECOND_LEVELS=TLSF_SECOND_LEVELS,
    # intents
    INTENT_NONE=INTENT_NONE, INTENT_SWAP_SLOT=INTENT_SWAP_SLOT, INTENT_RESIZE=INTENT_RESIZE, INTENT_MOVE=INTENT_MOVE,
    INTENT_SHRINK=INTENT_SHRINK, INTENT_SWAP_TWO=INTENT_SWAP_TWO,
    INTENT_FIRST_TYPE_SHIFT=INTENT_FIRST_TYPE_SHIFT, INTENT_SECOND_TYPE_SHIFT=INTENT_SECOND_TYPE_SHIFT,
    # names, arrays, pins, queues
    SLOT_EMPTY=SLOT_EMPTY, SLOT_REMOVED=SLOT_REMOVED, FNV_BASIS=FNV_BASIS, FNV_PRIME=FNV_PRIME, NAME_HASH_FACTOR=NAME_HASH_FACTOR,
    ARRAY_TEMPORARY=ARRAY_TEMPORARY, ARRAY_UNNAMED=ARRAY_UNNAMED, ARRAY_SEALED=ARRAY_SEALED, UNLIMITED=<uint64_t>UNLIMITED,
    PIN_UNNAMED=<uint64_t>PIN_UNNAMED,
    PIN_SLOTS=PIN_SLOTS, PIN_SLOT_SHIFT=PIN_SLOT_SHIFT, PIN_SLOT_OFF_MASK=<uint64_t>PIN_SLOT_OFF_MASK, PIN_SLOT_UNNAMED=PIN_SLOT_UNNAMED,
    CLAIM_ENDS=CLAIM_ENDS, CHANGE_CHANNELS=CHANGE_CHANNELS,
    QUEUE_RECORDS=QUEUE_RECORDS, QUEUE_BYTES=QUEUE_BYTES, QUEUE_STRUCT=QUEUE_STRUCT,
    # semaphores, events, channels
    SEMAPHORE_MAX=SEMAPHORE_MAX, EVENT_SIGNALED=EVENT_SIGNALED, CHANNEL_WAITERS_SHIFT=CHANNEL_WAITERS_SHIFT,
    # the files of named semaphores and events
    NAMED_MAGIC=NAMED_MAGIC, NAMED_VERSION=NAMED_VERSION, NAMED_SEMAPHORE=NAMED_SEMAPHORE, NAMED_EVENT=NAMED_EVENT,
)
globals().update(CONSTANTS)
