"""Reading the annotations of a class body: at once if possible, later if a name is not defined yet.

An annotation is an object or a string; under ``from __future__ import annotations`` it is always a string.
Strings are evaluated with the names that the class body saw, as far as these still exist: the class
itself, local variables of the enclosing function (at class creation only), Struct classes defined beside it,
module globals, builtins.  The expression between the brackets of ``Ref[...]`` is not evaluated with the
rest: it becomes a string, since it may name a class that is defined later.
"""

import ast
import inspect
import re
import sys
import typing

_CLASS_VAR = re.compile(r"\s*(\w+\s*\.\s*)?ClassVar\b")


class Scope:
    """The names that the annotations of one class may use: the innermost mapping that `eval` looks in.

    Parameters
    ----------
    cls : type
    neighbours : dict
        (module, qualified name) -> class, for every Struct class of this process.
    """

    def __init__(self, cls, neighbours):
        self.cls = cls
        self.neighbours = neighbours
        module = sys.modules.get(cls.__module__)
        self.globals = vars(module) if module is not None else {}
        self.locals = {}

    def see(self, frame):
        """Use the names of the frame in which the class statement ran."""
        if frame.f_globals.get("__name__") == self.cls.__module__:
            self.globals = frame.f_globals
            self.locals = frame.f_locals if frame.f_locals is not frame.f_globals else {}

    def forget_locals(self):
        """Forget the variables of the enclosing function, which an annotation must not keep alive."""
        self.locals = {}

    def __getitem__(self, name):
        if name == self.cls.__name__:
            return self.cls
        if name in self.locals:
            return self.locals[name]
        prefix = self.cls.__qualname__
        while "." in prefix:
            prefix = prefix.rpartition(".")[0]
            neighbour = self.neighbours.get((self.cls.__module__, f"{prefix}.{name}"))
            if neighbour is not None:
                return neighbour
        raise KeyError(name)

    def run(self, tree):
        """Return the value of an expression; raise NameError if it uses a name that is not defined yet."""
        code = compile(ast.fix_missing_locations(ast.Expression(tree)), f"<annotation in {self.cls.__qualname__}>", "eval")
        return eval(code, self.globals, self)


class _QuoteTargets(ast.NodeTransformer):
    """Turn the expression between the brackets of Ref[...] into a string."""

    def __init__(self, scope, ref):
        self.scope = scope
        self.ref = ref

    def visit_Subscript(self, node):
        try:
            is_ref = self.scope.run(node.value) is self.ref
        except (NameError, AttributeError):
            is_ref = False
        if not is_ref:
            return self.generic_visit(node)
        if not isinstance(node.slice, ast.Constant):
            node.slice = ast.Constant(ast.unparse(node.slice))
        return node


def evaluate(annotation, scope, ref):
    """Return the value of an annotation, with strings evaluated.

    Parameters
    ----------
    annotation : object
    scope : Scope
    ref : type
        The class `Ref`, between whose brackets nothing is evaluated.

    Raises
    ------
    NameError, AttributeError
        The annotation uses a name that is not defined, perhaps not yet.
    TypeError
        The annotation is not a valid expression.
    """
    while isinstance(annotation, str):
        try:
            tree = ast.parse(annotation.strip(), mode="eval").body
        except SyntaxError:
            raise TypeError(f"the annotation {annotation!r} is not an expression") from None
        annotation = scope.run(_QuoteTargets(scope, ref).visit(tree))
    return annotation


def is_class_variable(annotation):
    """Return whether this annotation is a ClassVar, evaluated or not, and so does not declare a field."""
    if isinstance(annotation, str):
        return _CLASS_VAR.match(annotation) is not None
    return annotation is typing.ClassVar or typing.get_origin(annotation) is typing.ClassVar


def own_annotations(cls):
    """Return the annotations of the class's own body: name -> object or string."""
    if sys.version_info < (3, 14):
        return inspect.get_annotations(cls)
    import annotationlib

    try:
        return annotationlib.get_annotations(cls)
    except NameError:  # it uses a class that is defined later: read it as text and evaluate it then
        return annotationlib.get_annotations(cls, format=annotationlib.Format.STRING)
