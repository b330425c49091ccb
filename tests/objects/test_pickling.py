"""Pickling: who sends a handle and who stores data depends on the pickler alone, never on the functions that called it."""

import pytest

KINDS = """
import copy, io, pickle
import numpy as np
class Pair(shmem.Struct):
    x: shmem.int64
section = shmem.SharedMemory(max_size=1 << 20)
array = section.array([1, 2, 3])
others = [section.new(Pair), section.queue(1, "i8"), section.allocate(5), section.mutex(), section.semaphore(), section.event(), section]
def refusal(function, obj):
    try:
        return function(obj) and None
    except TypeError as error:
        return str(error)
"""


def test_pickle_at_the_top_level_of_a_script(child):
    """At the top level of a script there are few callers, or one."""
    program = child(
        KINDS
        + """
assert pickle.loads(pickle.dumps(array)).tolist() == [1, 2, 3] and len(pickle.dumps(array)) < 1000
assert pickle.loads(array.dumps()).tolist() == copy.deepcopy(array).tolist() == [1, 2, 3]
pickle.dump(array, io.BytesIO())
try: pickle.dumps(others[0])
except TypeError as error: assert "cannot pickle" in str(error)
try: copy.copy(others[0])
except TypeError as error: assert "cannot pickle or copy" in str(error)
for other in others:
    assert "pickle" in refusal(pickle.dumps, other)
"""
    )
    program.end()


def test_pickle_in_a_thread_without_a_python_function(child):
    """A thread may run a builtin function alone, so that there is no caller at all."""
    program = child(
        KINDS
        + """
import _thread
there, back = os.pipe()
_thread.start_new_thread(pickle.dump, (array, open(back, "wb", buffering=0)))
assert pickle.load(open(there, "rb")).tolist() == [1, 2, 3]
"""
    )
    program.end()


def test_class_made_in_a_thread_without_a_python_function(child):
    """The class statement's frame is read for the names in annotations; there may be none."""
    program = child("""
import _thread
namespace = {"__module__": "__main__", "__annotations__": {"x": shmem.int64}}
_thread.start_new_thread(type(shmem.Struct), ("Pair", (shmem.Struct,), namespace))
while not shmem.Struct.__subclasses__() or not shmem.Struct.__subclasses__()[0].dtype.names:
    time.sleep(0.001)
with shmem.SharedMemory(max_size=1 << 20) as section:
    assert section.new(shmem.Struct.__subclasses__()[0], x=3).x == 3
""")
    program.end()


VENDORED = """
import pickle
_dispatch_table = {}
def register(cls, reducer):
    _dispatch_table[cls] = reducer
def dump(obj):
    return pickle.dumps(obj)
def dumps(obj):
    return dump(obj)
"""


@pytest.fixture
def vendored_loky(tmp_path):
    """Return a folder to import from, in which a package contains a loky of its own, as joblib does."""
    folder = tmp_path / "vendor" / "loky" / "backend"
    folder.mkdir(parents=True)
    for package in (tmp_path / "vendor", tmp_path / "vendor" / "loky", folder):
        (package / "__init__.py").touch()
    (folder / "reduction.py").write_text(VENDORED)
    return tmp_path


@pytest.mark.parametrize("when", ["before the section", "after the section"])
def test_every_table_of_loky_is_filled(child, vendored_loky, when):
    """loky may be imported before or after the first section is opened, and classes may be defined later still."""
    program = child(
        f"""
sys.path.insert(0, args[0])
if {when == "before the section"}: import vendor.loky.backend.reduction
section = shmem.SharedMemory(max_size=1 << 20)
class Early(shmem.Struct):
    x: shmem.int64
from vendor.loky.backend import reduction
class Late(shmem.Struct):
    x: shmem.int64
objects = [section.zeros(3), section.new(Early), section.new(Late), section.queue(1, "i8"), section.allocate(5), section.mutex(), section]
for obj in objects:
    function, arguments = reduction._dispatch_table[type(obj)](obj)
    assert shmem.handle(function(*arguments)) == shmem.handle(obj)
import inspect
assert "def dumps" in inspect.getsource(reduction)
""",
        vendored_loky,
    )
    program.end()


def test_plain_pickle_called_by_loky(child, vendored_loky):
    """A pickler that stores data stores data, whatever the name of the module that called it."""
    program = child(
        """
sys.path.insert(0, args[0])
from vendor.loky.backend import reduction
import pickle
with shmem.SharedMemory(max_size=1 << 20) as section:
    data = reduction.dumps(section.array([1, 2, 3]))
assert pickle.loads(data).tolist() == [1, 2, 3]
""",
        vendored_loky,
    )
    program.end()


@pytest.mark.parametrize("first", ["loky", "section"])
def test_loky_imported_before_or_after_the_section(child, first):
    pytest.importorskip("loky.backend.reduction")
    program = child(f"""
import importlib, pickle
if {first == "loky"}: importlib.import_module("loky")
section = shmem.SharedMemory(max_size=1 << 20)
reduction = importlib.import_module("loky.backend.reduction")
array = section.zeros(1000)
again = pickle.loads(reduction.dumps(array))
again += 1
assert array.sum() == 1000 and pickle.loads(pickle.dumps(array)).tolist() == [1] * 1000
""")
    program.end()
