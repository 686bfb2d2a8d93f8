"""Converts office files to PDF with LibreOffice, which is optional."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

#: For one file. LibreOffice converts 100 pages in some seconds; a file that takes longer than this does not end.
TIMEOUT_S = 180.0
_MAC = Path("/Applications/LibreOffice.app/Contents/MacOS/soffice")
# Macros do not run, and nothing that a document names is loaded from the network or from another file.
_SETTINGS = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry">
<item oor:path="/org.openoffice.Office.Common/Security/Scripting"><prop oor:name="MacroSecurityLevel" oor:op="fuse">\
<value>3</value></prop></item>
<item oor:path="/org.openoffice.Office.Common/Security/Scripting"><prop oor:name="DisableMacrosExecution" \
oor:op="fuse"><value>true</value></prop></item>
<item oor:path="/org.openoffice.Office.Common/Security/Scripting"><prop oor:name="BlockUntrustedRefererLinks" \
oor:op="fuse"><value>true</value></prop></item>
</oor:items>
"""


class ConversionError(Exception):
    """LibreOffice made no PDF of a file. The message is one line for people."""


def program() -> str | None:
    """The path of LibreOffice, or None if it is not installed."""
    return shutil.which("soffice") or shutil.which("libreoffice") or (str(_MAC) if _MAC.exists() else None)


def convert(path: Path, scratch: Path) -> Path:
    """Convert an office file to PDF. Returns the PDF, which lies in the empty folder ``scratch``.

    LibreOffice gets a copy of the file and a new profile, both in ``scratch``: it leaves lock files and settings
    there and nowhere else, and no running LibreOffice takes the work over.

    Raises:
        ConversionError: LibreOffice is missing, failed, made no PDF, or took more than ``TIMEOUT_S`` seconds.
        OSError: the file cannot be read or ``scratch`` cannot be written.
    """
    found = program()
    if found is None:
        raise ConversionError("LibreOffice (soffice) is not installed")
    (scratch / "profile" / "user").mkdir(parents=True)
    (scratch / "profile" / "user" / "registrymodifications.xcu").write_text(_SETTINGS, "utf-8")
    (scratch / "in").mkdir()
    copy = scratch / "in" / f"document{path.suffix.lower()}"  # a plain name: LibreOffice reads names as URLs
    shutil.copyfile(path, copy)
    profile = f"-env:UserInstallation={(scratch / 'profile').absolute().as_uri()}"
    options = ["--headless", "--norestore", "--nolockcheck", "--nodefault", "--nologo"]
    command = [found, profile, *options, "--convert-to", "pdf", "--outdir", str(scratch / "out"), str(copy)]
    said = _run(command, scratch)
    made = scratch / "out" / "document.pdf"
    if not made.is_file() or made.is_symlink():
        raise ConversionError(f"LibreOffice made no PDF of it{f' ({said})' if said else ''}")
    return made


def _run(command: list[str], scratch: Path) -> str:
    """Run LibreOffice. Returns the last line that it printed. Raises ConversionError after ``TIMEOUT_S`` seconds."""
    environment = {**os.environ, "HOME": str(scratch), "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=scratch,
        env=environment,
        start_new_session=True,  # soffice starts another process; both end with the group
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConversionError(f"LibreOffice took more than {TIMEOUT_S:g} s") from None
    finally:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        if process.stdout:
            process.stdout.close()
    lines = output.decode("utf-8", "replace").split("\n")
    return " ".join(next((line for line in reversed(lines) if line.strip()), "").split())[:200]
