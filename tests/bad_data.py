"""Bad data folders, broken downloads and small disks, for `tests.fault_injection`."""

import dataclasses
import http.server
import os
import pathlib
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from typing import Any


def tmpfs(folder: pathlib.Path, options: str) -> bool:
    """Mounts a small disk; returns False if that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def data_days(runs: Any, note: Callable) -> None:
    """Trains with bad data folders and broken downloads."""
    smoke = ("--preset=smoke", "--dataset=ptb", "--train_size=2000", "--eval_size=500")
    folder = runs.folder / "data"
    folder.mkdir()
    raw = os.environ.get("ZONEOUT_RAW_DATA")
    if raw is None:
        print("$ZONEOUT_RAW_DATA is not set: bad data are not tested")
        return
    disk = folder / "readonly"
    if tmpfs(disk, "size=1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            code, said = runs.run(folder / "a", *smoke, f"--data_dir={disk}")
            note("read-only data folder", code, said, code == 2 and "Read-only" in said)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    copy = folder / "raw"
    shutil.copytree(pathlib.Path(raw) / "ptb", copy / "ptb")
    file = copy / "ptb" / "ptb.valid.txt"
    original = file.read_bytes()
    file.write_bytes(original[:-1])
    flags = (*smoke, f"--data_dir={folder / 'prepared'}", f"--raw_data_dir={copy}")
    code, said = runs.run(folder / "b", *flags)
    file.write_bytes(original)
    again, _ = runs.run(folder / "b", *flags)
    well = code == 2 and "SHA-256" in said and again == 0
    note("wrong checksum, then the right file", code, said, well)

    empty = folder / "empty"
    empty.mkdir()
    flags = (*smoke, f"--data_dir={folder / 'downloaded'}", f"--raw_data_dir={empty}")
    with http.server.ThreadingHTTPServer(("localhost", 0), Mirror) as server:
        server.folder = pathlib.Path(raw) / "ptb"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_port}"
        code, said = runs.run(folder / "c", *flags, patch=Redirect(f"{address}/cut"))
        again, _ = runs.run(folder / "c", *flags, patch=Redirect(f"{address}/whole"))
        server.shutdown()
    parts = list((folder / "downloaded").rglob("*.tmp"))
    note("interrupted download, then a whole one", code, said, (code, again, parts) == (2, 0, []))


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves files of `server.folder`; below /cut it sends only half of a file."""

    def do_GET(self) -> None:
        """Answers a request."""
        content = (self.server.folder / self.path.rsplit("/", 1)[1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = self.path.startswith("/cut")
        self.wfile.write(content[: len(content) // 2] if half else content)

    def log_message(self, *arguments) -> None:
        """Logs nothing."""


@dataclasses.dataclass(frozen=True)
class Redirect:
    """Redirects every download to one address."""

    address: str

    def __call__(self) -> None:
        """Installs the redirect in the calling process."""
        original = urllib.request.urlopen

        def urlopen(url: str, timeout: float):
            return original(f"{self.address}/{url.rsplit('/', 1)[1]}", timeout=timeout)

        urllib.request.urlopen = urlopen
