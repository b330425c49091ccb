"""Is everything ready for a release?  ``python tools/release.py``, or ``make release``.  It changes nothing.

The version of the package is compared with the changelog, with CITATION.cff and with the tags of the repository.
"""

import datetime
import pathlib
import re
import subprocess
import sys

try:
    import tomllib
except ImportError:
    raise SystemExit("shmem's tools need Python 3.11 or later") from None

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
GROUPS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
URLS = ("Source", "Issues", "Changelog")
RELEASE = re.compile(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})( \[YANKED\])?")


def read(name):
    return (CHECKOUT / name).read_text(encoding="utf-8")


def parts(version):
    """Return a version as a tuple of numbers, or () if it is not three numbers."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", version) else ()


def package_version():
    return re.search(r'^__version__ = "(.+)"$', read("shmem/__init__.py"), re.M)[1]


def split_changelog(text):
    """Return the sections of a changelog: each heading and its lines."""
    pieces = re.split(r"^## (.*)$", text, flags=re.M)[1:]
    return [(title, body.strip().splitlines()) for title, body in zip(pieces[::2], pieces[1::2], strict=True)]


def changelog_problems(text):
    """Say where a changelog is not of the form "Keep a Changelog", whatever the state of the project."""
    sections = split_changelog(text)
    if not sections or sections[0][0] != "[Unreleased]":
        return ["CHANGELOG.md: the first section must be `## [Unreleased]`"]
    found = []
    previous = None
    for title, lines in sections:
        match = RELEASE.fullmatch(title)
        if title != "[Unreleased]" and match is None:
            found.append(f"CHANGELOG.md: `## {title}` is not of the form `## [1.2.3] - 2026-01-31`")
        elif match is not None:
            release = parts(match[1]), match[2]
            if previous is not None and not (release[0] < previous[0] and release[1] <= previous[1]):
                found.append(f"CHANGELOG.md: `## {title}` must be older than the release above it")
            previous = release
        groups = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
        unknown = [group for group in groups if group not in GROUPS]
        found += [f"CHANGELOG.md: `### {group}` below `## {title}` is none of {', '.join(GROUPS)}" for group in unknown]
        found += [f"CHANGELOG.md: `### {group}` occurs twice below `## {title}`" for group in GROUPS if groups.count(group) > 1]
    return found


def citation_problems(version, date):
    """Say where CITATION.cff names another version than the package, or another day than the changelog."""
    facts = dict(re.findall(r"^([\w-]+): (.+)$", read("CITATION.cff"), re.M))
    wanted = {"version": version} | ({"date-released": date} if date else {})
    wrong = [(key, value) for key, value in wanted.items() if facts.get(key) != value]
    return [f"CITATION.cff: {key} is {facts.get(key, 'missing')}, and must be {value}" for key, value in wrong]


def release_problems(version, text):
    """Say what the changelog lacks for a release of this version; return the day of the release too."""
    sections = split_changelog(text)
    if any(line.strip() for line in sections[0][1]):
        return [f"CHANGELOG.md: [Unreleased] is not empty: move its lines below `## [{version}] - {datetime.date.today()}`"], None
    match = RELEASE.fullmatch(sections[1][0]) if len(sections) > 1 else None
    if match is None or match[1] != version:
        return [f"CHANGELOG.md: the section below [Unreleased] is not that of {version}, the `__version__` of shmem/__init__.py"], None
    late = [f"CHANGELOG.md: {match[2]} is in the future"] if match[2] > str(datetime.date.today()) else []
    return late, match[2]


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=CHECKOUT, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def tag_problems(version, tags, tags_of_head):
    """Say why this commit cannot get the version's tag, or does not match the tags that it has."""
    tag = f"v{version}"
    found = [f"git: this commit has the tag {other}, and shmem/__init__.py says {version}" for other in tags_of_head if other != tag]
    if tag in tags and tag not in tags_of_head:
        found.append(f"git: the tag {tag} exists, at another commit: raise `__version__` in shmem/__init__.py")
    newer = [other for other in tags if parts(other.removeprefix("v")) > parts(version)]
    return found + [f"git: the tag {other} is newer than {version}" for other in newer]


def problems():
    """Return the version, and a sentence for each reason that there can be no release now."""
    version, changelog = package_version(), read("CHANGELOG.md")
    found = [] if parts(version) else [f"shmem/__init__.py: the version {version} is not of the form 1.2.3"]
    form = changelog_problems(changelog)
    more, date = ([], None) if form else release_problems(version, changelog)
    found += form + more + citation_problems(version, date)
    urls = tomllib.loads(read("pyproject.toml"))["project"].get("urls", {})
    found += [f"pyproject.toml: [project.urls] lacks {name}, a public address" for name in URLS if name not in urls]
    if git("status", "--porcelain", "--untracked-files=no"):
        found.append("git: there are changes that are not committed")
    return version, found + tag_problems(version, git("tag", "--list", "v*").split(), git("tag", "--points-at", "HEAD", "v*").split())


def main():
    version, found = problems()
    if found:
        print(*found, sep="\n")
        sys.exit(f"release: {version} cannot be released: {len(found)} problem(s)")
    print(f"{version} can be released: after `make packages` and `make ci-full`, tag this commit and push the tag:")
    print(f"    git tag --annotate v{version} --message 'shmem {version}' && git push origin v{version}")
    print("The workflow `packages` builds the wheels and publishes them.")


if __name__ == "__main__":
    main()
