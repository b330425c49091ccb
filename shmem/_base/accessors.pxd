# cython: language_level=3
"""One-line accessors of what lies in a section: sizes, the fields of tags and serial words, and the parts that follow a struct."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from shmem._base.layout cimport (
    BLOCK_ALIGN_BYTES, BLOCK_HEAD_BYTES, BLOCK_MIN_BYTES, BLOCK_REAR_BYTES, GOLDEN, INDEX_BYTES, LINE_BYTES, NAMES_SHIFT, PAGE_BYTES,
    SLACK_MASK, SLACK_SHIFT, STATE_CACHED, STATE_HOLE, TAG_SERIAL_MASK, TAG_SERIAL_SHIFT, TAG_SIZE_MASK, TAG_SMALL, TAG_SMALL_SIZE_MASK,
    TAG_STATE_MASK, TAG_TYPE_SHIFT, TYPE_CLAIM, TYPE_GROUP, TYPE_NAME_ENTRY, TYPE_NAME_TABLE, TYPE_PINS, array_t, name_entry_t, name_slot_t,
    name_table_t, participant_t, pin_record_t, queue_t)


cdef inline uint64_t participants_bytes(uint32_t max_participants) noexcept nogil:
    """Return the size of the pages of participant entries, which is also that of the pages of intents."""
    return round_up(<uint64_t>max_participants * sizeof(participant_t), PAGE_BYTES)


cdef inline uint64_t control_bytes(uint32_t max_participants) noexcept nogil:
    """Return the size of everything before the heap: `heap_start`."""
    return PAGE_BYTES + 2 * participants_bytes(max_participants) + INDEX_BYTES


cdef inline uint64_t tag_make(uint64_t size_bytes, uint64_t state, uint64_t type_id, uint64_t serial) noexcept nogil:
    """Return the tag of a PENDING or USED block; the bits of `serial` that have no place in it are ignored."""
    cdef uint64_t tag = size_bytes | state | type_id << TAG_TYPE_SHIFT
    return tag if size_bytes > TAG_SMALL_SIZE_MASK else tag | TAG_SMALL | (serial & TAG_SERIAL_MASK) << TAG_SERIAL_SHIFT


cdef inline uint64_t tag_make_free(uint64_t size_bytes, uint64_t state) noexcept nogil:
    """Return the tag of a HOLE or a CACHED block."""
    return size_bytes | state


cdef inline uint64_t tag_size(uint64_t tag) noexcept nogil:
    return tag & (TAG_SMALL_SIZE_MASK if tag & TAG_SMALL else TAG_SIZE_MASK)


cdef inline uint64_t tag_state(uint64_t tag) noexcept nogil:
    return tag & TAG_STATE_MASK


cdef inline bint tag_has_serial(uint64_t tag, uint64_t serial) noexcept nogil:
    """Whether the serial in the tag is this one, as far as the tag has it; a wide tag has none, and none of its own to differ."""
    return not tag & TAG_SMALL or ((tag >> TAG_SERIAL_SHIFT ^ serial) & TAG_SERIAL_MASK) == 0


cdef inline bint tag_has_right_format(uint64_t tag) noexcept nogil:
    """Whether the tag has the format that its size and state demand."""
    cdef uint64_t state = tag_state(tag), is_small = (tag & TAG_SMALL) != 0
    if state == STATE_HOLE or state == STATE_CACHED:
        return not is_small
    return is_small == (tag_size(tag) <= TAG_SMALL_SIZE_MASK)


cdef inline uint64_t tag_type(uint64_t tag) noexcept nogil:
    return tag >> TAG_TYPE_SHIFT


cdef inline uint64_t serial_slack(uint64_t serial_word) noexcept nogil:
    return serial_word >> SLACK_SHIFT & SLACK_MASK


cdef inline uint64_t serial_names(uint64_t serial_word) noexcept nogil:
    return serial_word >> NAMES_SHIFT


cdef inline uint64_t seal(uint64_t salt, uint64_t size_bytes, uint64_t end_off) noexcept nogil:
    """Return the rear tag of a block that ends at `end_off`; the function is its own inverse."""
    return size_bytes ^ salt ^ (end_off * GOLDEN)


cdef inline uint64_t round_up(uint64_t value, uint64_t power_of_two) noexcept nogil:
    return (value + power_of_two - 1) & ~(power_of_two - 1)


cdef inline uint64_t payload_to_block(uint64_t payload_off) noexcept nogil:
    return payload_off - BLOCK_HEAD_BYTES


cdef inline uint64_t block_to_payload(uint64_t block_off) noexcept nogil:
    return block_off + BLOCK_HEAD_BYTES


cdef inline uint64_t payload_bytes(uint64_t block_bytes) noexcept nogil:
    return block_bytes - BLOCK_HEAD_BYTES - BLOCK_REAR_BYTES


cdef inline uint64_t block_bytes_for(uint64_t request_bytes) noexcept nogil:
    """Return the size of a block whose payload holds `request_bytes`, a number that the caller has bounded."""
    cdef uint64_t size_bytes = round_up(request_bytes + BLOCK_HEAD_BYTES + BLOCK_REAR_BYTES, BLOCK_ALIGN_BYTES)
    return size_bytes if size_bytes > BLOCK_MIN_BYTES else BLOCK_MIN_BYTES


cdef inline uint64_t* array_shape(array_t* array) noexcept nogil:
    return <uint64_t*>(<char*>array + sizeof(array_t))


cdef inline int64_t* array_strides(array_t* array) noexcept nogil:
    return <int64_t*>(<char*>array + sizeof(array_t)) + array.n_dims


cdef inline uint64_t* array_pins(array_t* array) noexcept nogil:
    return <uint64_t*>(<char*>array + sizeof(array_t)) + 2 * array.n_dims


cdef inline char* array_dtype(array_t* array) noexcept nogil:
    return <char*>(array_pins(array) + array.n_pin_words)


cdef inline size_t array_header_bytes(size_t n_dims, size_t n_pin_words, size_t dtype_bytes) noexcept nogil:
    return round_up(sizeof(array_t) + 16 * n_dims + 8 * n_pin_words + dtype_bytes, LINE_BYTES)


cdef inline size_t grown_header_bytes(size_t n_dims, size_t n_pin_words, size_t dtype_bytes) noexcept nogil:
    """Return the same for an array that can grow, whose maximum shape comes last."""
    return array_header_bytes(n_dims, n_pin_words, dtype_bytes + 8 * n_dims)


cdef inline uint64_t* array_max_shape(array_t* array) noexcept nogil:
    """Return the maximum shape of an array that can grow: it ends where the data begin."""
    return <uint64_t*>(<char*>array + array.data_off) - array.n_dims


cdef inline bint type_is_internal(uint64_t type_id) noexcept nogil:
    """Whether blocks of this type belong to the library: users neither get nor free them."""
    return (type_id == TYPE_NAME_TABLE or type_id == TYPE_NAME_ENTRY or type_id == TYPE_GROUP or type_id == TYPE_PINS
            or type_id == TYPE_CLAIM)


cdef inline uint64_t* record_pins(pin_record_t* record) noexcept nogil:
    return <uint64_t*>(<char*>record + sizeof(pin_record_t))


cdef inline uint64_t* queue_pins(queue_t* queue) noexcept nogil:
    return <uint64_t*>(<char*>queue + sizeof(queue_t))


cdef inline char* queue_text(queue_t* queue) noexcept nogil:
    """Return the text of the queue's dtype."""
    return <char*>(queue_pins(queue) + queue.n_pin_words)


cdef inline uint64_t queue_header_bytes(uint64_t n_pin_words, uint64_t text_bytes) noexcept nogil:
    return round_up(sizeof(queue_t) + 8 * n_pin_words + text_bytes, LINE_BYTES)


cdef inline name_slot_t* table_slots(name_table_t* table) noexcept nogil:
    return <name_slot_t*>(<char*>table + sizeof(name_table_t))


cdef inline char* entry_name(name_entry_t* entry) noexcept nogil:
    return <char*>entry + sizeof(name_entry_t)


cdef inline char* entry_data(name_entry_t* entry) noexcept nogil:
    return <char*>entry + sizeof(name_entry_t) + entry.name_bytes
