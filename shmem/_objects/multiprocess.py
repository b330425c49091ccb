"""What the first opening registers: picklers that send references, and children of multiprocessing, which leave every section at the end.

This module is imported before the process opens its first section, so that `import shmem` alone does not import multiprocessing.
Only objects in an open section need it.
"""

import multiprocessing.util
from multiprocessing.reduction import ForkingPickler

from shmem._objects import handles, joining, references


def _leave_at_end(_):
    multiprocessing.util.Finalize(None, handles.leave_at_end, exitpriority=-100)


references.add_table(ForkingPickler.register, ForkingPickler.dumps)
joining.join_all()
multiprocessing.util.register_after_fork(_leave_at_end, _leave_at_end)  # the children of multiprocessing skip atexit
if multiprocessing.parent_process() is not None:
    _leave_at_end(None)
