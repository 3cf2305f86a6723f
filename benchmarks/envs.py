"""One virtual environment per peer, under `benchmarks/.envs/`, outside the project's own.

    python benchmarks/envs.py                    # make the missing ones
    python benchmarks/envs.py nnsight --remake   # throw one away and make it again

torch is installed first and alone, so that pip takes the same build as the project's; the peer follows under a
constraints file that holds torch and transformers still. The resolved versions are kept beside the interpreter in
`resolved.txt`; its presence says that an environment is complete.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVS = HERE / ".envs"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"


@dataclass(frozen=True)
class Peer:
    """A project we measure ourselves against: its pinned requirement and the worker that drives it."""

    name: str
    requirement: str
    worker: str
    beside: tuple[str, ...] = (TRANSFORMERS,)
    """What is installed with it and held still, besides torch."""
    without: tuple[str, ...] = ()
    """What is taken out again: PyPI's torchvision does not load beside torch's CPU build, and nothing here needs it."""

    @property
    def folder(self) -> Path:
        return ENVS / self.name

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def resolved(self) -> Path:
        return self.folder / "resolved.txt"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformer-lens", "transformer-lens==4.3.0", "transformer_lens_worker.py"),
        Peer("nnsight", "nnsight==0.8.1", "nnsight_worker.py"),
        Peer("interp-engine", "interp-engine==1.14.2", "interp_engine_worker.py"),
        Peer("nnterp", "nnterp==1.3.0", "nnterp_worker.py", (TRANSFORMERS, "nnsight==0.7.0")),
        Peer("interpreto", "interpreto==0.5.2", "interpreto_worker.py", (TRANSFORMERS, "nnsight==0.7.0")),
        Peer("tuned-lens", "tuned-lens==0.2.0", "tuned_lens_worker.py", ("transformers==4.46.3", "numpy<2.3")),
        Peer("captum", "captum==0.9.0", "captum_worker.py"),
    )
}


def make(peer: Peer) -> None:
    """Create `peer`'s environment from nothing; a half-made one is removed first."""
    shutil.rmtree(peer.folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(peer.folder)], check=True)
    constraints = peer.folder / "constraints.txt"
    constraints.write_text("\n".join((TORCH, *peer.beside)) + "\n")
    pip = [str(peer.python), "-m", "pip"]
    subprocess.run([*pip, "install", TORCH], check=True)
    subprocess.run([*pip, "install", *peer.beside, peer.requirement, "-c", str(constraints)], check=True)
    for package in peer.without:
        subprocess.run([*pip, "uninstall", "-y", package], check=True)
    frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    peer.resolved.write_text(frozen)


def ensure(peer: Peer) -> Path:
    """The peer's interpreter, its environment made first where it is missing."""
    if not peer.resolved.exists():
        print(f"making {peer.folder} ({peer.requirement})", file=sys.stderr)
        make(peer)
    return peer.python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", choices=[*PEERS, []], metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--remake", action="store_true", help="remove and make again")
    options = parser.parse_args()
    for name in options.peers or PEERS:
        peer = PEERS[name]
        if options.remake:
            make(peer)
        print(f"{name}: {ensure(peer)}")


if __name__ == "__main__":
    main()
