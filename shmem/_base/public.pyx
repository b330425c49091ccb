# cython: language_level=3
"""What Python code sees of classes: the module that public ones report, and whether their objects can be constructed."""

from cpython.object cimport PyObject, PyTypeObject, Py_TPFLAGS_HEAPTYPE

cdef extern from "Python.h":
    ctypedef int (*initproc)(PyObject* self, PyObject* arguments, PyObject* keywords) except -1
    ctypedef struct type_slots_t "PyTypeObject":
        const char* tp_name
        const char* tp_doc
        PyObject* tp_dict
        initproc tp_init
        void* tp_vectorcall
    void PyType_Modified(type cls)

cdef list _kept_texts = []           # keeps each text alive, because a C type keeps a pointer to it


def show_signature(type cls):
    """Make `inspect.signature` and `help` show the arguments of an extension type: those of its `__init__`, of which Cython keeps the text.

    Python finds them at the begin of the type's docstring, from which it removes them when the docstring is read.
    """
    cdef bytes doc
    signature = cls.__init__.__text_signature__
    if signature is None or not signature.startswith("($self") or signature.startswith("($self, /"):
        return                        # it has no `__init__` of its own
    short_name = (<type_slots_t*>cls).tp_name.decode().rpartition(".")[2]
    doc = f"{short_name}({signature.removeprefix('($self').removeprefix(', ')}\n--\n\n{cls.__doc__ or ''}".encode()
    _kept_texts.append(doc)
    (<type_slots_t*>cls).tp_doc = doc
    PyType_Modified(cls)


def set_module(str module, dict namespace, names):
    """Set ``__module__`` of the classes and functions with these names in a module's namespace.

    An extension type does not store the attribute: Python derives it from the name in the type, up to the last dot.
    """
    cdef bytes type_name
    for name in names:
        value = namespace[name]
        if isinstance(value, type) and not (<PyTypeObject*>value).tp_flags & Py_TPFLAGS_HEAPTYPE:
            type_name = f"{module}.{name}".encode()
            _kept_texts.append(type_name)
            (<PyTypeObject*>value).tp_name = type_name
            show_signature(value)
            PyType_Modified(value)
        elif hasattr(value, "__module__"):
            value.__module__ = module


def _refuse(cls, *args, **keywords):
    raise TypeError(f"cannot construct {cls.__name__} objects directly; functions of shmem make them")


cdef int _refuse_init(PyObject* self, PyObject* arguments, PyObject* keywords) except -1:
    _refuse(type(<object>self))
    return 0


def refuse_construction(*classes):
    """Make ``cls.__new__`` and ``cls()`` raise TypeError for classes of the C level whose objects Cython code has to fill in.

    Cython code makes their objects as before: it calls the C function behind ``__new__``, and not ``__init__``.
    A class that has an ``__init__`` of its own keeps it, and must raise there.
    """
    for cls in classes:
        (<dict>(<type_slots_t*>cls).tp_dict)["__new__"] = staticmethod(_refuse)
        if "__init__" not in cls.__dict__:
            (<type_slots_t*>cls).tp_init = _refuse_init
            (<type_slots_t*>cls).tp_vectorcall = NULL            # which does not look at tp_init
        PyType_Modified(cls)
