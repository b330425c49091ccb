# cython: language_level=3
"""The `__module__` of public classes and functions: the module that users import them from."""

from cpython.object cimport PyTypeObject, Py_TPFLAGS_HEAPTYPE

cdef extern from "Python.h":
    void PyType_Modified(type cls)

cdef list _type_names = []           # keeps each name alive, because a C type keeps a pointer to it


def set_module(str module, dict namespace, names):
    """Set ``__module__`` of the classes and functions with these names in a module's namespace.

    An extension type does not store the attribute: Python derives it from the name in the type, up to the last dot.
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
