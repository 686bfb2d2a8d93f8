"""Measures how the time and the files on disk of ``mmrr index --first-stage bm25`` grow with the number of documents.

Each document is a PDF of one page with a text of its own. The same folder is indexed four times: new, unchanged, with
one more file, and with every file named on the command line instead of the folder. The size of ``hashes.json`` shows
the cache of file hashes. Commands run in processes of their own, with one process that draws.

    python -m benchmarks.many_files [--files N] [--folder DIR] [--workers N]

Feeds the section "Large collections" of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_MMRR = [sys.executable, "-c", "from mmrr.cli.main import main; main()", "-q"]


def write_pdf(path: Path, number: int) -> None:
    """A PDF of one page of 200 x 200 points with one line of text that depends on the number."""
    content = f"BT /F1 12 Tf 10 100 Td (document {number} of the archive) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    data, offsets = bytearray(b"%PDF-1.4\n"), []
    for i, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj%s\nendobj\n" % (i, body)
    start = len(data)
    data += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % start
    path.write_bytes(data)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(what: str, n_files: int, *arguments: str) -> None:
    """Run one command and print its time, its time a file, and the time of the processors."""
    started, before = time.perf_counter(), _cpu_seconds()
    subprocess.run([*_MMRR, *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, cpu = time.perf_counter() - started, _cpu_seconds() - before
    show(what, f"{seconds:9.1f} s   {1000 * seconds / n_files:8.2f} ms a file   {cpu:9.1f} s CPU")


def show(what: str, value: str) -> None:
    print(f"{what:<34}{value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the files and the workspace go; default: a temporary folder")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        docs, work = Path(name, "docs"), Path(name, "work")
        for number in range(args.files):
            folder = docs / f"{number // 1000:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            write_pdf(folder / f"{number:06d}.pdf", number)
        machine = ("--renderer", "pdfium", "--max-tokens", "64", "--workers", str(args.workers))
        options = ("--work", str(work), "--first-stage", "bm25", *machine)
        show("files", str(args.files))
        timed("index, new", args.files, "index", str(docs), *options)
        count = sum(len(files) for _, _, files in os.walk(work))
        show("files on disk", f"{count:9d}     {count / args.files:8.3f} a page")
        show("hashes.json", f"{(work / 'hashes.json').stat().st_size / 1e6:9.1f} MB")
        timed("index, nothing changed", args.files, "index", str(docs), *options)
        write_pdf(docs / "one-more.pdf", args.files)
        timed("index, one file more", args.files, "index", str(docs), *options)
        if args.files <= 10_000:  # a command line has at most 2 MB
            named = [str(path) for path in sorted(docs.rglob("*.pdf"))]
            timed("index, every file named", args.files, "index", *named, *options)
        timed("ls --documents", args.files, "ls", "--documents", "--json", "--work", str(work))
        timed("retrieve", args.files, "retrieve", "document 7 of the archive", "--work", str(work))
        timed("rm without names", args.files, "rm", "--work", str(work))


if __name__ == "__main__":
    main()
