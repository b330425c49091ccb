"""Sunlight on the slopes of a mountain ridge, summed over a day by several processes in one shared section.

The elevation model that matplotlib ships (Jacksboro fault, Tennessee) is enlarged sixteenfold per side and placed in a
file-backed section.  Worker processes attach to the section by its path.  Each claims a band of rows, sums the
light from many positions of the sun in place, and claims the next band.  The same is then computed
with `multiprocessing.Pool`, where grid and results travel with each task by pickle.

Patterns to copy:

* `Progress`: a typed root object, from which processes that know only a path learn what to do.
* `claim_band` and `finish_band`: the assignment of work is changed under the storage lock.  The pixels need no lock, because a
  band belongs to one worker at a time.
* `Crew.replace_dead`: a killed worker is detected, its bands are released for others, and another worker is
  started.  Try it with ``--kill``.
* `open_section`: an interrupted run is resumed from the file.
"""

import argparse
import datetime
import multiprocessing
import os
import signal
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

import shmem

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

MODEL_ROWS, MODEL_COLUMNS = 344, 403
ENLARGE = 16
ROWS, COLUMNS = MODEL_ROWS * ENLARGE, MODEL_COLUMNS * ENLARGE
BAND_ROWS = 32
N_BANDS = ROWS // BAND_ROWS
SECTION_BYTES = 512 << 20  # a limit: disk space is taken only as used
STEP_MINUTES = 30  # between two positions of the sun, usual for maps of solar radiation
FREE, DONE = 0, -1  # values of `Progress.owner` beside the numbers of workers
MAX_DEATHS = 10  # more killed workers are not an accident

Grid = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Vectors = npt.NDArray[np.float64]


class Progress(shmem.Struct, type_name="hillshade.Progress"):
    """The root object: the task and its progress.  Change it under the exclusive lock, read it under the shared one."""

    made_at: shmem.float64  # seconds since 1970
    runs: shmem.int64  # completed ones
    completed_at: shmem.float64  # seconds since 1970; 0 while a run is under way or was interrupted
    day: shmem.int64  # of the year
    latitude: shmem.float64  # degrees
    cell_x: shmem.float64  # metres between two columns
    cell_y: shmem.float64  # metres between two rows
    bands_done: shmem.int64
    elevation_crc: shmem.uint32
    sunlight_crc: shmem.uint32  # valid when completed, like the mean
    sunlight_mean: shmem.float64
    # of each band: FREE, DONE, or the number of a worker; type checkers see an array, because the length is not a literal
    owner: Annotated[npt.NDArray[np.int32], shmem.Array[np.int32, N_BANDS]]

    def cell(self) -> tuple[float, float]:
        """Return the width and height of a cell, in metres."""
        return self.cell_x, self.cell_y

    def suns(self) -> Vectors:
        """Return the positions of the sun in the course of the day."""
        return sun_positions(self.latitude, self.day)

    def release(self, bands: Mask) -> None:
        """Make `bands` (a mask) free to be claimed again.

        The count is computed from `owner`, where every change is one store, so it is correct after a kill too.
        """
        self.owner[bands] = FREE
        self.bands_done = int(np.count_nonzero(self.owner == DONE))


# -- the model ----------------------------------------------------------------------------------------


def load_model() -> tuple[Grid, tuple[float, float], float]:
    """Return the elevation model in metres (north up), its cells' width and height in metres, and its latitude in degrees."""
    from matplotlib.cbook import get_sample_data

    opened: Any = get_sample_data("jacksboro_fault_dem.npz")  # matplotlib does not say what it returns
    with opened as model:
        elevation = model["elevation"].astype(np.float32)
        latitude = float(model["ymin"] + model["ymax"]) / 2
        metres_per_degree = 111_200
        cell_x = float(model["dx"]) * metres_per_degree * np.cos(np.radians(latitude))
        cell_y = float(model["dy"]) * metres_per_degree
    return elevation, (cell_x, cell_y), latitude


def cubic(distance: Vectors) -> Vectors:
    """Return the weight of a sample at a distance: the cubic convolution of Keys (1981), also known as Catmull-Rom."""
    x = np.abs(distance)
    return np.select([x < 1, x < 2], [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2])


def enlarge_columns(samples: Grid) -> Grid:
    """Return `ENLARGE` columns for each column."""
    position = (np.arange(ENLARGE) + 0.5) / ENLARGE - 0.5  # of the new columns, relative to the old one
    weights = cubic(position - np.arange(-2, 3)[:, None]).astype(np.float32)
    padded = np.pad(samples, ((0, 0), (2, 2)), mode="edge")
    neighbours = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=1)
    return (neighbours @ weights).reshape(len(samples), -1)


def enlarge(model: Grid, out: Grid) -> None:
    """Write the enlarged model to `out`, which has a margin of one cell on each side, band by band."""
    tall = np.pad(enlarge_columns(model.T).T, ((1, 1), (0, 0)), mode="edge")
    for first in range(0, len(out), BAND_ROWS):
        rows = slice(first, first + BAND_ROWS)
        out[rows, 1:-1] = enlarge_columns(tall[rows])
    out[:, 0], out[:, -1] = out[:, 1], out[:, -2]


def sun_positions(latitude: float, day: int) -> Vectors:
    """Return unit vectors to the sun (east, north, up) while it is above the horizon, every `STEP_MINUTES` of a day."""
    latitude = np.radians(latitude)
    declination = np.radians(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    hour_angle = np.radians(np.arange(-180, 180, STEP_MINUTES / 4))  # 15 degrees an hour, 0 at noon
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour_angle)
    up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    visible: Vectors = np.column_stack([east, north, up])[up > 0]
    return visible


def add_sunlight(elevation: Grid, cell: tuple[float, float], suns: Vectors, out: Grid) -> None:
    """Sum the hillshade over the positions of the sun in `out`, in hours at right angles to the light, without cast shadows.

    `elevation` has a margin of one cell on each side.  `out` is zeroed first, so that a band can be started again.
    """
    east = (elevation[1:-1, :-2] - elevation[1:-1, 2:]) / (2 * cell[0])
    north = (elevation[2:, 1:-1] - elevation[:-2, 1:-1]) / (2 * cell[1])
    up = 1 / np.sqrt(1 + east**2 + north**2)  # the surface's unit normal is (east, north, up)
    east *= up
    north *= up
    shade, part = np.empty_like(up), np.empty_like(up)
    out[...] = 0
    for sun_east, sun_north, sun_up in suns.tolist():
        np.multiply(east, sun_east, out=shade)
        shade += np.multiply(north, sun_north, out=part)
        shade += np.multiply(up, sun_up, out=part)
        out += np.maximum(shade, 0, out=shade)
    out *= STEP_MINUTES / 60


# -- shared: the worker -------------------------------------------------------------------------------


def claim_band(shm: shmem.SharedMemory, progress: Progress, number: int) -> int | None:
    """Assign a free band to worker `number` and return the band, or None if no band is free."""
    with shmem.exclusive_lock(shm):
        free = np.flatnonzero(progress.owner == FREE)
        if not len(free):
            return None
        progress.owner[free[0]] = number
        return int(free[0])


def finish_band(shm: shmem.SharedMemory, progress: Progress, band: int) -> None:
    """Record that a band is done."""
    with shmem.exclusive_lock(shm):
        progress.owner[band] = DONE
        progress.bands_done += 1


def rows_of(band: int) -> tuple[slice, slice]:
    """Return the rows of a band in the result, and in the elevation with its margin."""
    first = band * BAND_ROWS
    return slice(first, first + BAND_ROWS), slice(first, first + BAND_ROWS + 2)


def work(path: str, number: int) -> None:
    """Compute bands until none is free: the main function of a worker process, which attaches by path."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which terminates its workers
    ignore_owner_deaths()
    with shmem.SharedMemory(path) as shm:
        progress, elevation, sunlight = shm.root, shm["elevation"], shm["sunlight"]
        cell, suns = progress.cell(), progress.suns()
        while (band := claim_band(shm, progress, number)) is not None:
            result_rows, elevation_rows = rows_of(band)
            add_sunlight(elevation[elevation_rows], cell, suns, out=sunlight[result_rows])
            finish_band(shm, progress, band)


def ignore_owner_deaths() -> None:
    """Ignore the warning after a worker was killed with the lock.

    `bands_done` may then be one short of `owner`, and the parent recounts it whenever a worker has died.
    """
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)


# -- shared: the parent -------------------------------------------------------------------------------


class Crew:
    """The worker processes.  A killed worker is replaced, and its bands are released."""

    def __init__(self, shm: shmem.SharedMemory, n_workers: int, console: "Console") -> None:
        self.shm, self.progress, self.console = shm, shm.root, console
        self.processes: dict[int, BaseProcess] = {}
        self.n_started = self.n_deaths = 0
        for _ in range(n_workers):
            self.start_one()

    def start_one(self) -> None:
        """Spawn a worker: a new program, which inherits nothing and opens the section by its path."""
        self.n_started += 1
        process = multiprocessing.get_context("spawn").Process(target=work, args=(self.shm.path, self.n_started), daemon=True)
        process.start()
        self.processes[self.n_started] = process

    def replace_dead(self) -> None:
        """Replace killed workers, and exit if one has failed."""
        for number, process in list(self.processes.items()):
            exitcode = process.exitcode
            if exitcode is None:
                continue
            del self.processes[number]
            if exitcode > 0:
                raise SystemExit(f"worker {number} failed; its traceback is above")
            if exitcode < 0:
                self.replace(number, process, signal.Signals(-exitcode))

    def replace(self, number: int, process: BaseProcess, by: signal.Signals) -> None:
        """Release the bands of a killed worker, and start another one."""
        self.n_deaths += 1
        if self.n_deaths > MAX_DEATHS:
            raise SystemExit(f"stopped after {self.n_deaths} killed workers")
        with shmem.exclusive_lock(self.shm):
            lost = self.progress.owner == number
            self.progress.release(lost)
        bands = ", ".join(str(band) for band in np.flatnonzero(lost)) or "none"
        self.start_one()
        self.console.print(f"worker {number} (process {process.pid}) was killed by {by.name}; its bands: {bands}")
        self.console.print(f"worker {self.n_started} (process {self.processes[self.n_started].pid}) replaces it")

    def kill_one(self) -> bool:
        """Kill a worker in the middle of a band; return whether there was one."""
        with shmem.shared_lock(self.shm):
            claimed = self.progress.owner[self.progress.owner > 0]
        for number in claimed.tolist():
            if number in self.processes:
                self.processes[number].kill()
                return True
        return False

    def join(self) -> None:
        """Wait for the workers, which end when no band is left."""
        for process in self.processes.values():
            process.join()

    def terminate(self) -> None:
        """Terminate the remaining workers."""
        for process in self.processes.values():
            process.terminate()
            process.join()


def compute_shared(shm: shmem.SharedMemory, n_workers: int, kill: bool, console: "Console") -> None:
    """Compute every band that is not done with workers; the bar shows the progress recorded in the section."""
    import rich.progress

    progress, done = shm.root, 0
    with rich.progress.Progress(*bar_columns(), console=console) as bar:
        task = bar.add_task("in place, in the section", total=N_BANDS)
        crew = Crew(shm, n_workers, bar.console)
        try:
            while done < N_BANDS:
                time.sleep(0.02)
                crew.replace_dead()
                if kill and done > N_BANDS // 3:
                    kill = not crew.kill_one()
                with shmem.shared_lock(shm):
                    done = progress.bands_done
                bar.update(task, completed=done)
            crew.join()
        finally:
            crew.terminate()


def bar_columns() -> "Sequence[ProgressColumn]":
    """Return the columns of the progress bars."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    return TextColumn("{task.description:>24}"), BarColumn(40), MofNCompleteColumn(), TextColumn("bands"), TimeElapsedColumn()


# -- the same with pickle -----------------------------------------------------------------------------


def do_task(task: tuple[int, Grid, tuple[float, float], Vectors]) -> tuple[int, Grid]:
    """Compute a band: a task of the pool, whose grid and result travel by pickle."""
    band, elevation, cell, suns = task
    result = np.empty((BAND_ROWS, COLUMNS), np.float32)
    add_sunlight(elevation, cell, suns, result)
    return band, result


def compute_by_pickle(elevation: Grid, cell: tuple[float, float], suns: Vectors, n_workers: int, console: "Console") -> Grid:
    """Compute the same with `multiprocessing.Pool`, and return the result."""
    import rich.progress

    tasks = ((band, elevation[rows_of(band)[1]], cell, suns) for band in range(N_BANDS))
    sunlight = np.empty((ROWS, COLUMNS), np.float32)
    with (
        rich.progress.Progress(*bar_columns(), console=console) as bar,
        multiprocessing.get_context("spawn").Pool(n_workers) as pool,
    ):
        task = bar.add_task("by pickle, through a pool", total=N_BANDS)
        for band, result in pool.imap_unordered(do_task, tasks):
            sunlight[rows_of(band)[0]] = result
            bar.advance(task)
        pool.close()
        pool.join()
    return sunlight


# -- the section --------------------------------------------------------------------------------------


def open_section(path: Path, day: int, console: "Console") -> shmem.SharedMemory:
    """Open or create the section.  An earlier run is reported on, and resumed if it was interrupted."""
    try:
        shm = shmem.SharedMemory(path, max_size=SECTION_BYTES)
        progress = shm.root
        if not isinstance(progress, Progress | None):
            raise shmem.LayoutMismatch(f"its root object is {progress!r}")
    except shmem.LayoutMismatch as error:
        console.print(f"{path} was made by another version and is created again: {error}")
        path.unlink()
        return open_section(path, day, console)
    others = set(shm.stats().participants) - {os.getpid()}
    if others:
        raise SystemExit(f"cannot open {path}: in use by processes {sorted(others)}; wait for them, or stop them")
    if progress is None:  # the root is set last: the section is empty or incomplete
        for name in list(shm):
            del shm[name]
        fill_section(shm, day, console)
    else:
        report_on_section(shm, console)
        begin_run(shm, progress, day)
    return shm


def begin_run(shm: shmem.SharedMemory, progress: Progress, day: int) -> None:
    """Mark the bands to compute: all, or those that an interrupted run has left."""
    with shmem.exclusive_lock(shm):
        is_new_run = progress.completed_at > 0 or progress.day != day
        progress.release(np.full(N_BANDS, True) if is_new_run else progress.owner > 0)
        progress.day, progress.completed_at = day, 0


def fill_section(shm: shmem.SharedMemory, day: int, console: "Console") -> None:
    """Create the grid, the array for the result, and last the root object."""
    model, (cell_x, cell_y), latitude = load_model()
    started = time.perf_counter()
    elevation = shm.empty((ROWS + 2, COLUMNS + 2), np.float32, name="elevation")
    enlarge(model, elevation)
    shm.zeros((ROWS, COLUMNS), np.float32, name="sunlight")
    shm.root = shm.new(
        Progress,
        made_at=time.time(),
        day=day,
        latitude=latitude,
        cell_x=cell_x / ENLARGE,
        cell_y=cell_y / ENLARGE,
        elevation_crc=zlib.crc32(elevation.data),
    )
    console.print(f"enlarged {MODEL_ROWS} x {MODEL_COLUMNS} to {ROWS} x {COLUMNS} cells in {time.perf_counter() - started:.1f} s")


def report_on_section(shm: shmem.SharedMemory, console: "Console") -> None:
    """Print what an earlier run left: its time, its arrays, and whether the numbers are unchanged."""
    progress = shm.root
    made_at = datetime.datetime.fromtimestamp(progress.made_at)
    console.print(f"{shm.path} was created on {made_at:%Y-%m-%d at %H:%M:%S}; completed runs since then: {progress.runs}")
    for name, array in shm.items():
        console.print(f"  {name:10} {array.dtype}, {' x '.join(map(str, array.shape))}, {array.nbytes / 1e6:,.1f} MB")
    report_on_array("elevation", shm["elevation"], progress.elevation_crc, console)
    if progress.completed_at:
        report_on_array("sunlight", shm["sunlight"], progress.sunlight_crc, console)
        console.print(f"  mean sunlight: {progress.sunlight_mean:.6f} h")
    else:
        console.print(f"  the last run was interrupted after {progress.bands_done} of {N_BANDS} bands")


def report_on_array(name: str, array: Grid, crc: int, console: "Console") -> None:
    """Print whether an array still has the checksum that was stored with it."""
    console.print(f"  {name} is unchanged, checksum {crc:08x}" if zlib.crc32(array.data) == crc else f"  {name} HAS CHANGED")


def complete_run(shm: shmem.SharedMemory) -> None:
    """Store checksum and mean of the result, for the next run to compare with."""
    progress, sunlight = shm.root, shm["sunlight"]
    with shmem.exclusive_lock(shm):
        progress.sunlight_crc = zlib.crc32(sunlight)
        progress.sunlight_mean = sunlight.mean(dtype=np.float64)
        progress.runs += 1
        progress.completed_at = time.time()


# -- the picture --------------------------------------------------------------------------------------


def shrink(array: Grid, factor: int = 4) -> Grid:
    """Return the means of squares of ``factor * factor`` cells."""
    rows, columns = array.shape
    means: Grid = array.reshape(rows // factor, factor, columns // factor, factor).mean(axis=(1, 3), dtype=np.float32)
    return means


def draw(shm: shmem.SharedMemory, path: Path) -> None:
    """Draw two maps: the relief in the light of the whole day, and the hours of light."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colors, pyplot

    progress = shm.root
    height, light = shrink(shm["elevation"][1:-1, 1:-1]), shrink(shm["sunlight"])
    low, high = np.percentile(light, [0.5, 99.5])
    greens_to_white = colors.ListedColormap(pyplot.get_cmap("gist_earth")(np.linspace(0.33, 0.98, 256)))
    tints = pyplot.cm.ScalarMappable(colors.Normalize(*np.percentile(height, [0.1, 99.9])), greens_to_white)
    brightness = 0.3 + 0.9 * np.clip((light - low) / (high - low), 0, 1)
    relief = np.clip(tints.to_rgba(height)[..., :3] * brightness[..., None], 0, 1)

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(17.6, 9), sharey=True)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    extent = (0, COLUMNS * progress.cell_x / 1000, 0, ROWS * progress.cell_y / 1000)
    left.imshow(relief, extent=extent)
    left.set(title="Relief, lit by the sun of the whole day", xlabel="km east", ylabel="km north")
    figure.colorbar(tints, ax=left, label="elevation in metres", extend="both", fraction=0.05)
    shown = right.imshow(light, cmap="inferno", extent=extent, vmin=low, vmax=high)
    right.set(title="Direct sunlight, summed in place by the workers", xlabel="km east")
    figure.colorbar(shown, ax=right, label="hours at right angles to the light", extend="both", fraction=0.05)
    date = datetime.date(2025, 1, 1) + datetime.timedelta(days=progress.day - 1)
    title = f"Jacksboro fault, Tennessee, on a clear {date:%d %B}: {ROWS} x {COLUMNS} cells, {len(progress.suns())} positions of the sun"
    figure.suptitle(title, fontsize=17)
    figure.savefig(path, dpi=110)


# -- the demo -----------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for section and picture (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes (default: %(default)s)")
    parser.add_argument("--day", type=int, default=355, help="day of the year (default: %(default)s)")
    parser.add_argument("--kill", action="store_true", help="kill a worker in the middle of the run, which completes anyway")
    parser.add_argument("--fresh", action="store_true", help="first delete the section of earlier runs")
    return parser.parse_args()


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """Call `function`; return (result, seconds, seconds of processor time), child processes included."""
    started, before = time.perf_counter(), os.times()
    result = function(*arguments)
    seconds, after = time.perf_counter() - started, os.times()
    return result, seconds, sum(after[:4]) - sum(before[:4])


def compare(shm: shmem.SharedMemory, n_workers: int, shared_times: Sequence[float], console: "Console") -> None:
    """Compute the same by pickle, print both times, and verify that the results are equal."""
    progress = shm.root
    grid = np.array(shm["elevation"])  # a private copy, as a program without the section would have
    sunlight, *pickle_times = timed(compute_by_pickle, grid, progress.cell(), progress.suns(), n_workers, console)
    for what, times in (("in place, in the section:", shared_times), ("by pickle, through a pool:", pickle_times)):
        console.print(f"{what:27}{times[0]:5.2f} s, {times[1]:5.2f} s of processor time")
    ratios = [pickle / shared for pickle, shared in zip(pickle_times, shared_times, strict=True)]
    console.print(f"pickle took {ratios[0]:.2f} times as long, and {ratios[1]:.2f} times the processor time")
    if not np.array_equal(sunlight, shm["sunlight"]):
        raise SystemExit("comparison failed: the two results differ")
    console.print("both results are identical, bit by bit")


def main() -> None:
    """Run the demo."""
    import rich.console

    arguments = parse_arguments()
    console = rich.console.Console(highlight=False, soft_wrap=True)
    path, picture = arguments.output / "hillshade.shm", arguments.output / "hillshade.png"
    arguments.output.mkdir(exist_ok=True)
    if arguments.fresh:
        path.unlink(missing_ok=True)
    ignore_owner_deaths()
    with open_section(path, arguments.day, console) as shm:
        n_kept = shm.root.bands_done
        _, *times = timed(compute_shared, shm, arguments.workers, arguments.kill, console)
        complete_run(shm)
        if n_kept == 0:
            compare(shm, arguments.workers, times, console)
        else:
            console.print(f"{n_kept} of {N_BANDS} bands were kept from the interrupted run: no comparison")
        draw(shm, picture)
        heap = shm.check_heap()
        console.print(f"the heap is intact: {heap.blocks} blocks, {heap.used_bytes:,} bytes in use, {heap.hole_bytes:,} in holes")
    console.print(f"wrote {picture} and {path}; the next run reports on them")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run the demo again to resume") from None
