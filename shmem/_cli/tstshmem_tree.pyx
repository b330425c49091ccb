# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The tree of `tstshmem` as a C-level client: nodes in plain C, threads without the GIL, and nothing but `cimport shmem`.

A node is a block of its own; links are offsets.  Readers hold the lock shared and writers exclusive.  A writer may be
killed between any two stores.  Two properties keep the tree walkable:

* Every change is a sequence of single 8-byte stores in program order (`publish` is a release store, so the
  compiler keeps the order too).  After each of them every key that the tree should have is found:

  - insert: the node is complete before the one store that links it.
  - remove a node with at most one child: one store makes the slot that led to the node lead to its child.
  - remove a node with two children: one store overwrites its key with its successor's, which removes the key.
    Then one store in the slot that led to the successor's node takes that node out.

* A kill between those last two stores leaves the successor's key twice: in the upper node, and in the leftmost node of its
  right subtree.  A search finds the upper one.  A later removal of that key looks for the successor anyway, so it
  meets the copy and takes it out first.

A block is allocated before it is linked and unlinked before it is freed, so a kill loses at most one block.
"""

from libc.stdint cimport int64_t, uint64_t

cimport shmem

from shmem import ShmemError, get_error_text

cdef extern from *:
    """
    #include <stdint.h>
    static inline void publish(uint64_t *slot, uint64_t off) { __atomic_store_n(slot, off, __ATOMIC_RELEASE); }
    static inline void publish_key(int64_t *slot, int64_t key) { __atomic_store_n(slot, key, __ATOMIC_RELEASE); }
    static inline int is_set(const unsigned char *flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
    """
    void publish(uint64_t* slot, uint64_t off) noexcept nogil
    void publish_key(int64_t* slot, int64_t key) noexcept nogil
    int is_set(const unsigned char* flag) noexcept nogil

cdef enum:
    N_SEARCHES = 10
    KEY_MISSING = -1000
    KEY_TWICE = -1001

ctypedef struct node_t:
    int64_t key
    uint64_t left_off
    uint64_t right_off

ctypedef struct tree_t:
    shmem.section_t* section
    uint64_t* root  # the slot that leads to the root node
    bint locking


# -- the tree, for callers that hold the lock ---------------------------------------------------------------

cdef inline node_t* _node(tree_t* tree, uint64_t off) noexcept nogil:
    return <node_t*>shmem.pointer(tree.section, off)


cdef uint64_t* _find(tree_t* tree, int64_t key) noexcept nogil:
    """Return the slot that leads to the key's node, or the empty slot where that node belongs."""
    cdef uint64_t* slot = tree.root
    cdef node_t* node
    while slot[0]:
        node = _node(tree, slot[0])
        if node.key == key:
            break
        slot = &node.left_off if key < node.key else &node.right_off
    return slot


cdef uint64_t* _successor(tree_t* tree, node_t* node) noexcept nogil:
    """Return the slot that leads to the leftmost node of the right subtree, which is not empty."""
    cdef uint64_t* slot = &node.right_off
    node = _node(tree, slot[0])
    while node.left_off:
        slot = &node.left_off
        node = _node(tree, slot[0])
    return slot


cdef int _insert(tree_t* tree, int64_t key) noexcept nogil:
    cdef uint64_t* slot = _find(tree, key)
    cdef uint64_t off = 0
    cdef node_t* node
    cdef int status
    if slot[0]:
        return KEY_TWICE
    status = shmem.allocate(tree.section, sizeof(node_t), False, &off)
    if status != 0:
        return status
    node = _node(tree, off)
    node.key = key
    node.left_off = node.right_off = 0
    publish(slot, off)
    return 0


cdef int _take_out(tree_t* tree, uint64_t* slot, uint64_t child_off) noexcept nogil:
    cdef uint64_t off = slot[0]
    publish(slot, child_off)
    return shmem.free(tree.section, off)


cdef int _remove(tree_t* tree, int64_t key) noexcept nogil:
    cdef uint64_t* slot = _find(tree, key)
    cdef uint64_t* next_slot
    cdef node_t* node
    cdef node_t* successor
    cdef bint is_copy
    cdef int status = 0
    if slot[0] == 0:
        return KEY_MISSING
    node = _node(tree, slot[0])
    while status == 0 and node.right_off:
        next_slot = _successor(tree, node)
        successor = _node(tree, next_slot[0])
        is_copy = successor.key == key  # a remover was killed halfway
        if node.left_off == 0 and not is_copy:
            return _take_out(tree, slot, node.right_off)
        if not is_copy:
            publish_key(&node.key, successor.key)  # from here on the key is gone
        status = _take_out(tree, next_slot, successor.right_off)
        if not is_copy:
            return status
    return _take_out(tree, slot, node.left_off) if status == 0 else status


# -- one operation, with its lock -----------------------------------------------------------------------------

cdef inline int _lock(tree_t* tree, bint exclusive) noexcept nogil:
    if not tree.locking:
        return 0
    return shmem.lock_exclusive(tree.section, shmem.FOREVER) if exclusive else shmem.lock_shared(tree.section, shmem.FOREVER)


cdef inline int _unlock(tree_t* tree, bint exclusive, int status) noexcept nogil:
    """Unlock; return the status of the operation if it failed, otherwise that of unlocking."""
    cdef int unlock_status = 0
    if tree.locking:
        unlock_status = shmem.unlock_exclusive(tree.section) if exclusive else shmem.unlock_shared(tree.section)
    return status if status != 0 else unlock_status


cdef int insert(tree_t* tree, int64_t key) noexcept nogil:
    cdef int status = _lock(tree, True)
    return status if status != 0 else _unlock(tree, True, _insert(tree, key))


cdef int search(tree_t* tree, int64_t key) noexcept nogil:
    cdef int status = _lock(tree, False)
    return status if status != 0 else _unlock(tree, False, 0 if _find(tree, key)[0] else KEY_MISSING)


cdef int remove(tree_t* tree, int64_t key) noexcept nogil:
    cdef int status = _lock(tree, True)
    return status if status != 0 else _unlock(tree, True, _remove(tree, key))


# -- what a thread does ---------------------------------------------------------------------------------------

cdef int _work(tree_t* tree, const int64_t* keys, Py_ssize_t n_keys, const unsigned char* stop) noexcept nogil:
    """Insert, search N_SEARCHES times, remove.  On `stop` or after an error, remove at once what was inserted."""
    cdef Py_ssize_t i, n_inserted = 0
    cdef int status = 0, remove_status = 0, one_status, n_left = N_SEARCHES
    while n_inserted < n_keys and not is_set(stop):
        status = insert(tree, keys[n_inserted])
        if status != 0:
            break
        n_inserted += 1
    while n_left and status == 0:
        n_left -= 1
        for i in range(n_inserted):
            if status != 0 or is_set(stop):
                break
            status = search(tree, keys[i])
    for i in range(n_inserted):
        one_status = remove(tree, keys[i])
        if one_status != 0:
            remove_status = one_status
    return status if status != 0 else remove_status


cdef int _check(int status) except -1:
    if status == 0:
        return 0
    if status == KEY_MISSING:
        raise RuntimeError("an inserted key is not in the tree")
    if status == KEY_TWICE:
        raise RuntimeError("a key that was not inserted is already in the tree")
    error = ShmemError(get_error_text(status))
    error.status = status
    raise error


cdef class Tree:
    """The tree for Python; several threads may call every method at once.

    Parameters
    ----------
    memory : SharedMemory
        Must stay open as long as the tree is used.
    slot : int
        Offset of the 8 bytes that lead to the root node.
    locking : bool
        Whether to take locks.
    """
    cdef object memory
    cdef tree_t tree

    def __cinit__(self, memory, uint64_t slot, bint locking):
        self.memory = memory
        self.tree.section = shmem.section_of(memory)
        self.tree.root = <uint64_t*>shmem.pointer(self.tree.section, slot)
        self.tree.locking = locking

    def work(self, const int64_t[::1] keys, const unsigned char[::1] stop):
        """Insert every key, search for each N_SEARCHES times and remove them.  When `stop[0]` is set, remove them at once and return."""
        cdef int status = 0
        if keys.shape[0]:
            with nogil:
                status = _work(&self.tree, &keys[0], keys.shape[0], &stop[0])
        _check(status)

    def remove_keys(self, const int64_t[::1] keys):
        """Remove the keys that the tree has; return how many there were."""
        cdef Py_ssize_t i, n_removed = 0
        cdef int status = 0
        with nogil:
            for i in range(keys.shape[0]):
                status = remove(&self.tree, keys[i])
                if status == 0:
                    n_removed += 1
                elif status != KEY_MISSING:
                    break
        _check(0 if status == KEY_MISSING else status)
        return n_removed

    def count_keys(self, const int64_t[::1] keys):
        """Return how many of the keys the tree has."""
        cdef Py_ssize_t i, n_found = 0
        cdef int status = 0
        with nogil:
            for i in range(keys.shape[0]):
                status = search(&self.tree, keys[i])
                if status == 0:
                    n_found += 1
                elif status != KEY_MISSING:
                    break
        _check(0 if status == KEY_MISSING else status)
        return n_found

    def count_nodes(self):
        """Return the number of nodes; RuntimeError if the tree is out of order or has a cycle.  The caller holds the lock."""
        cdef node_t* node
        cdef int64_t low, high
        cdef uint64_t off
        n_most = self.memory.stats().blocks
        n_nodes = 0
        ways = [(self.tree.root[0], -(1 << 63), (1 << 63) - 1)]
        while ways:
            off, low, high = ways.pop()
            if off == 0:
                continue
            self.memory.block(off)  # raises InvalidBlock if there is no block
            node = _node(&self.tree, off)
            n_nodes += 1
            if not low <= node.key <= high or n_nodes > n_most:
                raise RuntimeError(f"the tree is damaged at offset {off:#x}")
            ways.append((node.left_off, low, node.key))
            ways.append((node.right_off, node.key, high))
        return n_nodes
