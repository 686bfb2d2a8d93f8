"""Breaks things at random and looks for lost work, silently different rankings, tracebacks and endless commands.

A small collection (3 PDFs, 23 pages) goes through index, precache and rerank with tiny random checkpoints. Then each
case does one thing to it:

* ``kill``: SIGKILL a command at a random moment, run the chain again, compare the ranking byte for byte;
* ``damage``: flip a bit of, cut, empty or delete one file of the workspace, ask other queries, run the chain again;
* ``input``: mutate PDFs, queries, judgements or options;
* ``checkpoint``: mutate the JSON files and the weights of a checkpoint;
* ``disk``: files of at most 30 to 300 kB, or a disk of 300 kB where this user may mount one, then the chain without it;
* ``two``: two commands at once in one workspace, then the chain.

A case is right if the ranking is the same, or if the command ended in one line of error. Everything else is printed
with the command that repeats the case, and the exit status is 1.

    python -m benchmarks.faults --minutes 15 --seed 1 --out faults.json
    python -m benchmarks.faults --seed 1 --case 17

Feeds the section "Faults" of BENCHMARKS.md. It needs a POSIX system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_chain import Chain, Done, limit_files, ranking

STAGES = ("index", "precache", "rerank")


class FaultError(Exception):
    """What mmrr did wrong in a case."""


@dataclass
class Campaign:
    """The chain, its finished workspaces, and what the cases found."""

    chain: Chain
    seed: int
    seconds: dict[str, float] = field(default_factory=dict)  # of each command without faults
    expected: dict[str, bytes] = field(default_factory=dict)  # the rankings of both query files
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[dict[str, object]] = field(default_factory=list)

    def prepare(self) -> None:
        """Make the collection and run the chain without faults; a copy of the workspace is kept after each command."""
        self.chain.make()
        work = self.snapshot("")
        for stage in STAGES:
            done = self.sound(self.chain.run(self.chain.command(stage, work)))
            self.seconds[stage] = done.seconds
            shutil.copytree(work, self.snapshot(stage))
        self.expected["rerank"] = ranking(done)
        self.expected["others"] = ranking(self.sound(self.chain.run(self.chain.command("others", work))))

    def snapshot(self, stage: str) -> Path:
        """The workspace as it is after a stage without faults."""
        return self.chain.root / "snapshots" / (stage or "work")

    def sound(self, done: Done) -> Done:
        """The command, which must have ended well."""
        if done.code != 0:
            raise FaultError(f"a command without faults ended with {done.code}: {done.err.strip()[-400:]}")
        return done

    def case(self, number: int) -> None:
        """Run one case and count how it ended."""
        rng = random.Random(f"{self.seed}/{number}")
        names = list(KINDS)
        # Two of three cases are kills and damage, which have the most ways to go wrong.
        kind = rng.choices(names, weights=[4, 5, 2, 3, 1, 1])[0]
        folder = self.chain.root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            how = KINDS[kind](self, rng, folder)
        except FaultError as error:
            how = "FAULT"
            self.faults.append({"case": number, "kind": kind, "fault": str(error)})
            print(f"case {number} ({kind}): {error}\n  repeat: --seed {self.seed} --case {number}", flush=True)
        self.counts.setdefault(kind, Counter())[how] += 1

    def finish(self, work: Path, *, strict: bool) -> str:
        """Run the chain on a workspace and compare both rankings. ``strict``: no command may refuse."""
        for stage in (*STAGES, "others"):
            done = ended(self.chain.run(self.chain.command(stage, work)), stage)
            if done.code != 0:
                if strict:
                    raise FaultError(f"{stage} refuses to continue: {done.line or done.err[-300:]}")
                return "one line"
            if stage in self.expected and ranking(done) != self.expected[stage]:
                raise FaultError(f"the ranking of {stage} is silently different")
        return "same ranking"


def ended(done: Done, what: str) -> Done:
    """The command, which must have ended well or in one line."""
    if done.bug:
        raise FaultError(f"{what}: {done.bug}")
    return done


# Kinds of cases


def kill(campaign: Campaign, rng: random.Random, folder: Path) -> str:
    """SIGKILL one command of the chain at a random moment, up to three times, then run the chain."""
    at = rng.randrange(len(STAGES))
    work, stage = folder / "work", STAGES[at]
    if at:
        shutil.copytree(campaign.snapshot(STAGES[at - 1]), work)
    for _ in range(rng.randint(1, 3)):
        running = campaign.chain.start(campaign.chain.command(stage, work))
        time.sleep(rng.random() * 1.1 * campaign.seconds[stage])
        running.kill()
        running.wait()
    campaign.finish(work, strict=True)
    whole(campaign, work)
    return "same ranking"


def whole(campaign: Campaign, work: Path) -> None:
    done = ended(campaign.chain.run(campaign.chain.command("verify", work)), "verify")
    if done.code != 0:
        raise FaultError(f"verify: {done.err.strip()[-300:]}")


def damage(campaign: Campaign, rng: random.Random, folder: Path) -> str:
    """Damage one file, ask queries that need it, run the chain; each step gives the same ranking or one line."""
    work = folder / "work"
    shutil.copytree(campaign.snapshot("rerank"), work)
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        kinds.setdefault(re.sub(r"[0-9a-f]{12,}|\d{4}", "*", str(path.relative_to(work))), []).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    what = spoil(path, rng)
    name = f"{what} {path.relative_to(work)}"
    try:
        done = ended(campaign.chain.run(campaign.chain.command("others", work)), "rerank")
        if done.code == 0 and ranking(done) != campaign.expected["others"]:
            raise FaultError("the ranking is silently different")
        checked = campaign.chain.run(campaign.chain.command("verify", work))
        if not (
            checked.code == 1 and "damaged or missing" in checked.out + checked.err
        ):  # it lists the problems that it finds
            ended(checked, "verify")
        how = campaign.finish(work, strict=False)
    except FaultError as error:
        raise FaultError(f"{name}: {error}") from error
    return how


def spoil(path: Path, rng: random.Random) -> str:
    """Damage a file. Returns what was done."""
    data = bytearray(path.read_bytes())
    what = rng.choice(("flip", "flip", "cut", "empty", "delete", "noise"))
    if what == "delete":
        path.unlink()
        return what
    if what == "flip" and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del data[rng.randrange(len(data) + 1) :]
    elif what == "empty":
        data.clear()
    else:
        data[:] = rng.randbytes(len(data))
    path.write_bytes(bytes(data))
    return what


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a few random changes: bits, cuts, copies, and numbers at the edges."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del changed[at : at + rng.randrange(20)]
        elif how == 2:
            changed[at:at] = changed[at : at + rng.randrange(200)]
        else:
            changed[at:at] = rng.choice((b"-1", b"9" * 20, b"nan", b"\0", b"\xff", b"[[[[", b"null", b"\n", b"{}"))
    return bytes(changed)


def any_input(campaign: Campaign, rng: random.Random, folder: Path) -> str:
    """A mutated PDF, query file, judgement file, or option."""
    work, chain = folder / "work", campaign.chain
    shutil.copytree(campaign.snapshot("rerank"), work)
    what = rng.choice(("pdf", "queries", "qrels", "option"))
    if what == "pdf":
        (folder / "new").mkdir()
        source = rng.choice(sorted(chain.docs.iterdir()))
        (folder / "new" / "new.pdf").write_bytes(mutate(source.read_bytes(), rng))
        args = [str(folder / "new") if arg == str(chain.docs) else arg for arg in chain.command("index", work)]
    elif what == "option":
        args = chain.command(rng.choice(STAGES), work)
        values = ("-1", "0", "nan", "inf", "9" * 400, "", "\ue000", "a=b", "../x", "1e9", "~nosuchuser", "auto")
        options = ("--max-tokens", "--dpi", "--workers", "--candidates", "--keep", "--band", "--device", "-o", "--from")
        args += [rng.choice(options), rng.choice(values)]
    else:
        name, stage = ("queries.jsonl", "retrieve") if what == "queries" else ("qrels.trec", "eval")
        (folder / name).write_bytes(mutate((chain.root / name).read_bytes(), rng))
        args = [str(folder / name) if arg == str(chain.root / name) else arg for arg in chain.command(stage, work)]
    done = ended(chain.run(args), " ".join(args))
    return "used" if done.code == 0 else "one line"


def checkpoint(campaign: Campaign, rng: random.Random, folder: Path) -> str:
    """A checkpoint with one mutated file: a value of a JSON file, bytes of any file, or a file that is gone."""
    work, chain = folder / "work", campaign.chain
    shutil.copytree(campaign.snapshot("index"), work)
    model = folder / "model"
    shutil.copytree(chain.model, model)
    path = rng.choice(sorted(model.iterdir()))
    if path.suffix == ".json" and rng.random() < 0.7:
        values = json.loads(path.read_text())
        what = f"{path.name}: {change_value(values, rng)}"
        path.write_text(json.dumps(values))
    elif path.suffix == ".safetensors" and rng.random() < 0.7:
        data = path.read_bytes()
        head = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(mutate(data[:head], rng) + data[head:])
        what = f"{path.name}: header"
    else:
        what = f"{path.name}: {spoil(path, rng)}"
    option = rng.choice(("--scorer-model", "--embedder"))
    args = chain.command("precache" if option == "--scorer-model" else "index", work)
    args[args.index(option) + 1] = str(model)
    done = ended(chain.run(args), what)
    return "used" if done.code == 0 else "one line"


def change_value(values: Any, rng: random.Random) -> str:
    """Replace one value at a random depth by something else. Returns the place and the new value."""
    place: list[str] = []
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = rng.choice(keys)
        place.append(str(key))
        inner = values[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            break
        values = inner
    junk = (
        None,
        -1,
        0,
        10**9,
        10**30,
        0.5,
        float("nan"),
        "x",
        "",
        [],
        {},
        [1],
        {"a": 1},
        True,
        "../../x",
        "\ue0009\ue001",
    )
    values[key] = rng.choice(junk)
    return f"{'.'.join(place)} = {values[key]!r}"


def disk(campaign: Campaign, rng: random.Random, folder: Path) -> str:
    """A full disk, or a limit of the size of files, in one command; then the chain without it."""
    at = rng.randrange(len(STAGES))
    work, stage = folder / "work", STAGES[at]
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(folder)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    try:
        if at and not mounted:
            shutil.copytree(campaign.snapshot(STAGES[at - 1]), work)
        before = limit_files(rng.randint(30_000, 300_000)) if not mounted else lambda: None
        stage = "index" if mounted else stage
        ended(campaign.chain.run(campaign.chain.command(stage, work), before), f"{stage} on a full disk")
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        campaign.finish(work, strict=True)
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=False)
    return "same ranking"


def two(campaign: Campaign, rng: random.Random, folder: Path) -> str:
    """Two commands at once, the second a random moment after the first; then the chain."""
    at = rng.randrange(len(STAGES))
    work, chain = folder / "work", campaign.chain
    if at:
        shutil.copytree(campaign.snapshot(STAGES[at - 1]), work)
    first = chain.start(chain.command(STAGES[at], work))
    time.sleep(rng.random() * campaign.seconds[STAGES[at]] / 2)
    second = chain.start(chain.command(rng.choice((STAGES[at], "verify", "index")), work))
    for running in (first, second):
        ended(running.wait(), "one of two commands at once")
    campaign.finish(work, strict=True)
    whole(campaign, work)
    return "same ranking"


KINDS: dict[str, Callable[[Campaign, random.Random, Path], str]] = {
    "kill": kill,
    "damage": damage,
    "input": any_input,
    "checkpoint": checkpoint,
    "disk": disk,
    "two": two,
}


def report(campaign: Campaign, seconds: float) -> dict[str, object]:
    """Print the table of the kinds and return everything as JSON."""
    print(f"{'kind':<12}{'cases':>7}{'same ranking':>14}{'one line':>10}{'used':>6}{'faults':>8}")
    for kind, found in campaign.counts.items():
        cells = (found["same ranking"], found["one line"], found["used"], found["FAULT"])
        print(f"{kind:<12}{found.total():>7}{cells[0]:>14}{cells[1]:>10}{cells[2]:>6}{cells[3]:>8}")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "seed": campaign.seed,
        "commit": head.stdout.strip(),
        "python": platform.python_version(),
        "seconds": round(seconds),
        "counts": {kind: dict(found) for kind, found in campaign.counts.items()},
        "faults": campaign.faults,
    }


def main() -> int:
    """Run cases until the time is over; 1 if one of them found a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="stop after the case that runs then")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, action="append", help="run only this case; may be repeated")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    os.environ |= {"HF_HUB_OFFLINE": "1", "MMRR_CONFIG": os.devnull}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mmrr-faults-") as root:
        campaign = Campaign(Chain(Path(root)), options.seed)
        campaign.prepare()
        number = 0
        for number in options.case or ():
            campaign.case(number)
        while not options.case and time.monotonic() - started < 60 * options.minutes:
            campaign.case(number)
            number += 1
    found = report(campaign, time.monotonic() - started)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
