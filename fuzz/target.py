"""The libFuzzer target: an input is a file's bytes followed by a program of steps in 12 bytes (see `tests/support/damaging.py`).

Each execution has a file of its own in memory.  The section is mapped far from other memory, so that an access outside of it
ends the process, and so does any exception that is not documented.  `target.py FILE` repeats one input and prints the result.
"""

import gc
import os
import pathlib
import random
import sys
import tempfile

import atheris
import damaged_images
import damaging

ADDRESS = 0x200000000000
N = damaging.PROGRAM_BYTES
folder = os.environ["SHMEM_FUZZ_FOLDER"]


def split(data):
    """Split an input into the file's bytes and the program."""
    return (data[:-N], data[-N:]) if len(data) > N else (data, b"")


def execute(data):
    """Execute one input."""
    content, program = split(data)
    path = os.path.join(folder, f"section-{os.getpid()}")
    with open(path, "wb") as file:
        file.write(content)
    try:
        damaging.exercise(path, program, desired_address=ADDRESS)
    finally:
        os.unlink(path)
        gc.collect(0)


def mutate(data, max_size, seed):
    """Mutate an input: mostly by damage that knows the layout, else by libFuzzer's own in a piece of the file, or by another program."""
    rng = random.Random(seed)
    content, program = split(data)
    content, kind = bytearray(content), rng.randrange(10)
    if kind < 6 or len(content) < 64:
        damaging.change(content, rng)
    elif kind < 8:
        n = min(8 << rng.randrange(8), len(content))
        at = damaging.place(content, damaging.chain(content), rng) % (len(content) - n + 1)
        piece = atheris.Mutate(bytes(content[at : at + n]), n)
        content[at : at + n] = piece.ljust(n, b"\0")  # so that the bytes after it stay in place
    if kind > 7 or len(program) < N:
        program = bytearray(program.ljust(N, b"\0"))
        for _ in range(rng.randrange(1, 5)):
            program[rng.randrange(N)] = rng.randrange(64)
        if rng.randrange(5) == 0:
            program[0] = damaging.CHECK
    return bytes(content[: max_size - N]) + bytes(program)


def crossover(one, two, max_size, seed):
    """Combine two inputs: put blocks of one file, or its program, into the other one."""
    rng = random.Random(seed)
    (content, program), (other, other_program) = split(one), split(two)
    content = bytearray(content)
    for _ in range(rng.randrange(4)):
        blocks = damaging.chain(other)
        at, size = blocks[rng.randrange(len(blocks))] if blocks else (0, 4096)
        content[at : at + size] = other[at : at + size]
    return bytes(content[: max_size - N]) + bytes(other_program if rng.randrange(2) else program)


def write_corpus(target):
    """Write the first corpus: each undamaged image with programs that together perform every step."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        for name, content in damaged_images.images(inside).items():
            for i in range(0, len(damaging.EVERYTHING), N // 2):
                program = damaging.EVERYTHING[i : i + N].ljust(N, b"\0")
                (target / f"{name} {i}".replace(" ", "-")).write_bytes(content + program)
            (target / f"{name} check".replace(" ", "-")).write_bytes(content + bytes([damaging.CHECK]).ljust(N, b"\0"))


def main():
    if sys.argv[1] == "--corpus":
        write_corpus(pathlib.Path(sys.argv[2]))
        return
    atheris.Setup(sys.argv, execute, custom_mutator=mutate, custom_crossover=crossover)
    gc.collect()
    gc.freeze()
    atheris.Fuzz()


if __name__ == "__main__":
    main()
