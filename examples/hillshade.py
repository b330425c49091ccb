"""Sunlight on every slope of a mountain ridge, summed over a day by several processes in one shared section.

The elevation model that matplotlib ships (Jacksboro fault, Tennessee) is enlarged sixteenfold per side and placed in a
file-backed section.  Worker processes attach to the section by its name.  Each claims a band of rows, adds up the
light that it gets from many positions of the sun, in place, and claims the next one.  The same is then done
with `multiprocessing.Pool`, where grid and results travel with each task by pickle.

What to copy from here:

* `Progress`: a typed root object, through which processes that know nothing but a path find out what to do.
* `claim_band` and `finish_band`: who works on what is decided under the storage lock.  The pixels need no lock, for a band
  belongs to one worker at a time.
* `Crew.look_after`: a worker that was killed is noticed, what it had claimed is given to others, and another
  worker started.  Try it with ``--kill``.
* `open_section`: a run that was interrupted is gone on with, from the file.
"""

import argparse
import datetime
import multiprocessing
import os
import signal
import time
import warnings
import zlib
from pathlib import Path

import numpy as np

import shmem

MODEL_ROWS, MODEL_COLUMNS = 344, 403
ENLARGE = 16
ROWS, COLUMNS = MODEL_ROWS * ENLARGE, MODEL_COLUMNS * ENLARGE
BAND_ROWS = 32
N_BANDS = ROWS // BAND_ROWS
SECTION_BYTES = 512 << 20       # a limit: disk space is taken only as used
STEP_MINUTES = 30               # between two positions of the sun, as is usual for maps of solar radiation
FREE, DONE = 0, -1              # what `Progress.owner` says of a band beside the number of the worker that has it
MAX_DEATHS = 10                 # so many killed workers are no accident


class Progress(shmem.Struct, type_name="hillshade.Progress"):
    """The root object: what is to be done, how far it is.  Change it under the exclusive lock, read it under the shared one."""

    made_at: shmem.float64                      # seconds since 1970
    runs: shmem.int64                           # that were completed
    completed_at: shmem.float64                 # seconds since 1970; 0 while a run is under way or was interrupted
    day: shmem.int64                            # of the year
    latitude: shmem.float64                     # degrees
    cell_x: shmem.float64                       # metres between two columns
    cell_y: shmem.float64                       # metres between two rows
    bands_done: shmem.int64
    elevation_crc: shmem.uint32
    sunlight_crc: shmem.uint32                  # when completed, as the mean
    sunlight_mean: shmem.float64
    owner: shmem.Array[shmem.int32, N_BANDS]    # of each band: FREE, DONE, or the number of a worker

    def cell(self):
        """Width and height of a cell, in metres."""
        return self.cell_x, self.cell_y

    def suns(self):
        """Where the sun stands, in the course of the day."""
        return sun_positions(self.latitude, self.day)

    def give_back(self, bands):
        """Let `bands` (a mask) be claimed anew.

        The count follows `owner`, where every change is one store, so that it is right after a kill too.
        """
        self.owner[bands] = FREE
        self.bands_done = np.count_nonzero(self.owner == DONE)


# -- the model ----------------------------------------------------------------------------------------


def load_model():
    """The elevation model, in metres, north up; its cells (width, height), in metres; its latitude in degrees."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("jacksboro_fault_dem.npz") as model:
        elevation = model["elevation"].astype(np.float32)
        latitude = float(model["ymin"] + model["ymax"]) / 2
        metres_per_degree = 111_200
        cell_x = float(model["dx"]) * metres_per_degree * np.cos(np.radians(latitude))
        cell_y = float(model["dy"]) * metres_per_degree
    return elevation, (cell_x, cell_y), latitude


def cubic(distance):
    """The weight of a sample at a distance: Keys's cubic convolution (1981), also known as Catmull-Rom."""
    x = np.abs(distance)
    return np.select([x < 1, x < 2], [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2])


def enlarge_columns(samples):
    """`ENLARGE` columns for each one."""
    position = (np.arange(ENLARGE) + 0.5) / ENLARGE - 0.5       # of the new ones, seen from the old one
    weights = cubic(position - np.arange(-2, 3)[:, None]).astype(np.float32)
    padded = np.pad(samples, ((0, 0), (2, 2)), mode="edge")
    neighbours = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=1)
    return (neighbours @ weights).reshape(len(samples), -1)


def enlarge(model, out):
    """Write the enlarged model to `out`, which has a margin of one cell all round, band by band."""
    tall = np.pad(enlarge_columns(model.T).T, ((1, 1), (0, 0)), mode="edge")
    for first in range(0, len(out), BAND_ROWS):
        rows = slice(first, first + BAND_ROWS)
        out[rows, 1:-1] = enlarge_columns(tall[rows])
    out[:, 0], out[:, -1] = out[:, 1], out[:, -2]


def sun_positions(latitude, day):
    """Unit vectors to the sun (east, north, up) while it is above the horizon, every `STEP_MINUTES` of a day."""
    latitude = np.radians(latitude)
    declination = np.radians(-23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    hour_angle = np.radians(np.arange(-180, 180, STEP_MINUTES / 4))     # 15 degrees an hour, 0 at noon
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour_angle)
    up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    return np.column_stack([east, north, up])[up > 0]


def add_sunlight(elevation, cell, suns, out):
    """Add up in `out` the hillshade for each position of the sun: hours at right angles to the light; cast shadows are left out.

    `elevation` has a margin of one cell all round.  `out` is cleared first, so that a band can be begun again.
    """
    east = (elevation[1:-1, :-2] - elevation[1:-1, 2:]) / (2 * cell[0])
    north = (elevation[2:, 1:-1] - elevation[:-2, 1:-1]) / (2 * cell[1])
    up = 1 / np.sqrt(1 + east**2 + north**2)    # the surface's unit normal is (east, north, up)
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


# -- shared: what a worker does -----------------------------------------------------------------------


def claim_band(shm, progress, number):
    """Find a band that nobody works on and write worker `number` into it; None when there is none."""
    with shmem.exclusive_lock(shm):
        free = np.flatnonzero(progress.owner == FREE)
        if not len(free):
            return None
        progress.owner[free[0]] = number
        return int(free[0])


def finish_band(shm, progress, band):
    """Say that a band is done."""
    with shmem.exclusive_lock(shm):
        progress.owner[band] = DONE
        progress.bands_done += 1


def rows_of(band):
    """The rows of a band in the result, and in the elevation with its margin."""
    first = band * BAND_ROWS
    return slice(first, first + BAND_ROWS), slice(first, first + BAND_ROWS + 2)


def work(path, number):
    """A worker process: attach by name, and do bands until none is free."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is for the parent, which ends its workers
    ignore_owner_deaths()
    with shmem.SharedMemory(path) as shm:
        progress, elevation, sunlight = shm.root, shm["elevation"], shm["sunlight"]
        cell, suns = progress.cell(), progress.suns()
        while (band := claim_band(shm, progress, number)) is not None:
            result_rows, elevation_rows = rows_of(band)
            add_sunlight(elevation[elevation_rows], cell, suns, out=sunlight[result_rows])
            finish_band(shm, progress, band)


def ignore_owner_deaths():
    """A worker killed inside the lock may leave `bands_done` one short of `owner`; the parent recounts whenever a worker has died."""
    warnings.simplefilter("ignore", shmem.OwnerDiedWarning)


# -- shared: what the parent does ---------------------------------------------------------------------


class Crew:
    """The worker processes.  One that is killed is replaced, and what it had claimed is given back."""

    def __init__(self, shm, n_workers, console):
        self.shm, self.progress, self.console = shm, shm.root, console
        self.processes = {}
        self.n_started = self.n_deaths = 0
        for _ in range(n_workers):
            self.start_one()

    def start_one(self):
        """Spawn: the worker is a new program, which inherits nothing and finds the section by its name."""
        self.n_started += 1
        process = multiprocessing.get_context("spawn").Process(target=work, args=(self.shm.path, self.n_started), daemon=True)
        process.start()
        self.processes[self.n_started] = process

    def look_after(self):
        """Notice who has ended, and how."""
        for number, process in list(self.processes.items()):
            if process.exitcode is None:
                continue
            del self.processes[number]
            if process.exitcode > 0:
                raise SystemExit(f"worker {number} failed: see above")
            if process.exitcode < 0:
                self.replace(number, process)

    def replace(self, number, process):
        """Worker `number` was killed."""
        self.n_deaths += 1
        if self.n_deaths > MAX_DEATHS:
            raise SystemExit(f"{self.n_deaths} workers were killed: giving up")
        with shmem.exclusive_lock(self.shm):
            lost = self.progress.owner == number
            self.progress.give_back(lost)
        bands = ", ".join(str(band) for band in np.flatnonzero(lost)) or "nothing"
        by = signal.Signals(-process.exitcode).name
        self.start_one()
        self.console.print(f"worker {number} (process {process.pid}) was killed by {by}; it had claimed: {bands}")
        self.console.print(f"worker {self.n_started} (process {self.processes[self.n_started].pid}) takes its place")

    def kill_one(self):
        """Kill a worker in the middle of a band."""
        with shmem.shared_lock(self.shm):
            claimed = self.progress.owner[self.progress.owner > 0]
        for number in claimed.tolist():
            if number in self.processes:
                self.processes[number].kill()
                return True
        return False

    def join(self):
        """Wait for the workers, who leave when no band is left."""
        for process in self.processes.values():
            process.join()

    def terminate(self):
        """End whoever is left."""
        for process in self.processes.values():
            process.terminate()
            process.join()


def compute_shared(shm, n_workers, kill, console):
    """Have workers do every band that is not done; the bar shows what they say in the section."""
    import rich.progress

    progress, done = shm.root, 0
    with rich.progress.Progress(*bar_columns(), console=console) as bar:
        task = bar.add_task("in place, in the section", total=N_BANDS)
        crew = Crew(shm, n_workers, bar.console)
        try:
            while done < N_BANDS:
                time.sleep(0.02)
                crew.look_after()
                if kill and done > N_BANDS // 3:
                    kill = not crew.kill_one()
                with shmem.shared_lock(shm):
                    done = progress.bands_done
                bar.update(task, completed=done)
            crew.join()
        finally:
            crew.terminate()


def bar_columns():
    """What the progress bars show."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    return TextColumn("{task.description:>24}"), BarColumn(40), MofNCompleteColumn(), TextColumn("bands"), TimeElapsedColumn()


# -- the same by pickle -------------------------------------------------------------------------------


def do_task(task):
    """A task of the pool: a band of the grid comes by pickle, its result goes back by pickle."""
    band, elevation, cell, suns = task
    result = np.empty((BAND_ROWS, COLUMNS), np.float32)
    add_sunlight(elevation, cell, suns, result)
    return band, result


def compute_by_pickle(elevation, cell, suns, n_workers, console):
    """The same computation with `multiprocessing.Pool`; returns the result."""
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


def open_section(path, day, console):
    """Open the section, or make it.  What an earlier run left there is reported on, and gone on with if it was interrupted."""
    try:
        shm = shmem.SharedMemory(path, max_size=SECTION_BYTES)
        progress = shm.root
        if not isinstance(progress, Progress | None):
            raise shmem.LayoutMismatch(f"its root object is {progress!r}")
    except shmem.LayoutMismatch as error:
        console.print(f"{path} is from another version, and is made anew: {error}")
        path.unlink()
        return open_section(path, day, console)
    others = set(shm.stats().participants) - {os.getpid()}
    if others:
        raise SystemExit(f"{path} is in use by {sorted(others)}: wait for them, or end them")
    if progress is None:        # it is set last, so there is nothing, or not all of it
        for name in list(shm):
            del shm[name]
        fill_section(shm, day, console)
    else:
        report_on_section(shm, console)
        begin_run(shm, progress, day)
    return shm


def begin_run(shm, progress, day):
    """All bands are to be done; if the last run was interrupted, those that it has left."""
    with shmem.exclusive_lock(shm):
        is_new_run = progress.completed_at > 0 or progress.day != day
        progress.give_back(np.full(N_BANDS, True) if is_new_run else progress.owner > 0)
        progress.day, progress.completed_at = day, 0


def fill_section(shm, day, console):
    """Place the grid, an array for the result, and last the root object."""
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
        elevation_crc=zlib.crc32(elevation),
    )
    console.print(f"enlarged {MODEL_ROWS} x {MODEL_COLUMNS} to {ROWS} x {COLUMNS} cells in {time.perf_counter() - started:.1f} s")


def report_on_section(shm, console):
    """What an earlier run left: when, which arrays, and whether the numbers are still the same."""
    progress = shm.root
    made_at = datetime.datetime.fromtimestamp(progress.made_at)
    console.print(f"{shm.path} was made on {made_at:%Y-%m-%d at %H:%M:%S}; completed runs since then: {progress.runs}")
    for name, array in shm.items():
        console.print(f"  {name:10} {array.dtype}, {' x '.join(map(str, array.shape))}, {array.nbytes / 1e6:,.1f} MB")
    report_on_array("elevation", shm["elevation"], progress.elevation_crc, console)
    if progress.completed_at:
        report_on_array("sunlight", shm["sunlight"], progress.sunlight_crc, console)
        console.print(f"  sunlight is {progress.sunlight_mean:.6f} h on average")
    else:
        console.print(f"  the last run was interrupted after {progress.bands_done} of {N_BANDS} bands")


def report_on_array(name, array, crc, console):
    """Whether the checksum of an array is the one that was noted with it."""
    console.print(f"  {name} is unchanged, checksum {crc:08x}" if zlib.crc32(array) == crc else f"  {name} HAS CHANGED")


def complete_run(shm):
    """Note what came out, for the next run to compare with."""
    progress, sunlight = shm.root, shm["sunlight"]
    with shmem.exclusive_lock(shm):
        progress.sunlight_crc = zlib.crc32(sunlight)
        progress.sunlight_mean = sunlight.mean(dtype=np.float64)
        progress.runs += 1
        progress.completed_at = time.time()


# -- the picture --------------------------------------------------------------------------------------


def shrink(array, factor=4):
    """Means of squares of ``factor * factor`` cells."""
    rows, columns = array.shape
    return array.reshape(rows // factor, factor, columns // factor, factor).mean(axis=(1, 3), dtype=np.float32)


def draw(shm, path):
    """Two maps: the relief in the light of the whole day, and that light in numbers."""
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

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(17.6, 9), layout="constrained", sharey=True)
    extent = (0, COLUMNS * progress.cell_x / 1000, 0, ROWS * progress.cell_y / 1000)
    left.imshow(relief, extent=extent)
    left.set(title="Relief, lit by the sun of the whole day", xlabel="km east", ylabel="km north")
    figure.colorbar(tints, ax=left, label="elevation in metres", extend="both", fraction=0.05)
    shown = right.imshow(light, cmap="inferno", extent=extent, vmin=low, vmax=high)
    right.set(title="Direct sunlight, added up in place by the workers", xlabel="km east")
    figure.colorbar(shown, ax=right, label="hours at right angles to the light", extend="both", fraction=0.05)
    date = datetime.date(2025, 1, 1) + datetime.timedelta(days=progress.day - 1)
    title = f"Jacksboro fault, Tennessee, on a clear {date:%d %B}: {ROWS} x {COLUMNS} cells, {len(progress.suns())} positions of the sun"
    figure.suptitle(title, fontsize=17)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.savefig(path, dpi=110)


# -- the demo -----------------------------------------------------------------------------------------


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for section and picture (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes (default: %(default)s)")
    parser.add_argument("--day", type=int, default=355, help="day of the year (default: %(default)s)")
    parser.add_argument("--kill", action="store_true", help="kill a worker in the middle, to see the run end well")
    parser.add_argument("--fresh", action="store_true", help="delete the section of earlier runs first")
    return parser.parse_args()


def timed(function, *arguments):
    """Call; returns (result, seconds, seconds of processor time), those of the child processes included."""
    started, before = time.perf_counter(), os.times()
    result = function(*arguments)
    seconds, after = time.perf_counter() - started, os.times()
    return result, seconds, sum(after[:4]) - sum(before[:4])


def compare(shm, n_workers, shared_times, console):
    """Do the same by pickle, tell both times, and see that both results are the same."""
    progress = shm.root
    grid = np.array(shm["elevation"])       # a private copy: as it would be without the section
    sunlight, *pickle_times = timed(compute_by_pickle, grid, progress.cell(), progress.suns(), n_workers, console)
    for what, times in (("in place, in the section:", shared_times), ("by pickle, through a pool:", pickle_times)):
        console.print(f"{what:27}{times[0]:5.2f} s, {times[1]:5.2f} s of processor time")
    ratios = [pickle / shared for pickle, shared in zip(pickle_times, shared_times, strict=True)]
    console.print(f"by pickle it took {ratios[0]:.2f} times as long, and {ratios[1]:.2f} times the processor time")
    if not np.array_equal(sunlight, shm["sunlight"]):
        raise SystemExit("the two results DIFFER")
    console.print("both results are the same, bit by bit")


def main():
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
            console.print(f"{n_kept} of {N_BANDS} bands were there already: no comparison")
        draw(shm, picture)
        heap = shm.check_heap()
        console.print(f"the heap is whole: {heap.blocks} blocks of ours, {heap.used_bytes:,} bytes in use, {heap.hole_bytes:,} in holes")
    console.print(f"written: {picture} and {path}; run it again, and it reports on what it left")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted: run it again, and it goes on from here") from None
