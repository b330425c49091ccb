"""Write the tables of docs/format.md from the layout that the package exports: ``python docs/make_format_tables.py``.

A table stands between the lines ``<!-- table: NAME -->`` and ``<!-- end of table -->``.  NAME is a struct of
`shmem._base.layout.LAYOUT`, or "constants: NAME NAME ..." for constants of that module.  Remarks are the comments of `layout.pxd`.
"""

import re
import sys
from pathlib import Path

import shmem
from shmem._base.layout import CONSTANTS, LAYOUT

PAGE = Path(__file__).resolve().parent / "format.md"
MARKED = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
SOURCE = Path(shmem.__file__).parent / "_base" / "layout.pxd"


def remarks(struct):
    """Return the comments beside the fields of a struct of `layout.pxd`, by name."""
    [body] = re.findall(rf"typedef struct \{{((?:(?!typedef).)*?)\}} {struct};", SOURCE.read_text(encoding="utf-8"), re.DOTALL)
    return dict(re.findall(r"\w+ (\w+)(?:\[\w+\])*;[ ]*/\* (.*?) \*/", body))


def struct_table(name):
    """Return the Markdown table of a struct."""
    known = remarks(name)
    rows = [f"| {name}, {LAYOUT[name].size} bytes: offset | type | field | remark |", "| ---: | --- | --- | --- |"]
    for field in LAYOUT[name].values():
        count = f"[{field.count}]" if field.count > 1 else ""
        remark = known.get(field.name, "").rstrip(",").replace("|", r"\|")
        rows.append(f"| {field.offset} | {field.ctype}{count} | `{field.name}` | {remark} |")
    return rows


def constant_table(names):
    """Return the Markdown table of some constants."""
    rows = ["| constant | value | hexadecimal |", "| --- | ---: | ---: |"]
    return rows + [f"| `{name}` | {CONSTANTS[name]:,} | {CONSTANTS[name]:#x} |" for name in names]


def table(what):
    """Return the table that a marker asks for."""
    kind, _, names = what.partition(": ")
    return "\n".join(constant_table(names.split()) if kind == "constants" else struct_table(what)) + "\n"


def rewrite(text):
    """Return the page with every table as the layout has it now."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(found[2])}\n{found[4]}", text)


def main():
    PAGE.write_text(rewrite(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
