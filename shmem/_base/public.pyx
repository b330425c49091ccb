# cython: language_level=3
"""The module that public classes and functions report: the one that users import them from."""

from cpython.object cimport PyTypeObject, Py_TPFLAGS_HEAPTYPE

cdef extern from "Python.h":
    void PyType_Modified(type cls)

cdef list _type_names = []           # a C type keeps a pointer to its name: it is never freed


def set_module(str module, dict namespace, names):
    """Set ``__module__`` of the classes and functions with these names in a module's namespace.

    A class of the C level has no such attribute: Python derives it from the name in the type itself, up to the last dot.
    """
    cdef bytes type_name
    for name in names:
        value = namespace[name]
        if isinstance(value, type) and not (<PyTypeObject*>value).tp_flags & Py_TPFLAGS_HEAPTYPE:
            type_name = f"{module}.{name}".encode()
            _type_names.append(type_name)
            (<PyTypeObject*>value).tp_name = type_name
            PyType_Modified(value)
        elif hasattr(value, "__module__"):
            value.__module__ = module
