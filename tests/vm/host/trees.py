# SPDX-License-Identifier: Apache-2.0
"""The Debian packages a guest is made of, fetched once and unpacked beside the checkout, never installed.

    qemu      QEMU and the libraries this machine lacks for it
    extra     what the guest has on top of this machine's root: kmod, a newer iproute2, strongSwan
    newest    the newest kernel: the backports of the next Debian
    6.12      the old end of what is tested: the backports of Debian 12

They come from the mirror this machine already uses, through a configuration of apt that is ours: the
machine's own lists and packages stay as they are. apt checks signatures and sums. A tree appears under
its name only when it is whole; what was downloaded of an unfinished one is used again.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

SUITES = {"newest": "trixie-backports", "6.12": "bookworm-backports"}
KERNELS = tuple(SUITES)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Each list is resolved on its own: charon-systemd and strongswan-charon do not go together in one.
PACKAGES = {
    "qemu": (("qemu-system-x86/bookworm-backports", "qemu-system-common/bookworm-backports",
              "qemu-system-data/bookworm-backports", "seabios/bookworm-backports"),),
    "extra": (("busybox-static", "kmod", "zstd", "iproute2/bookworm-backports",
               "bpftool/bookworm-backports", "tcpdump", "iperf3", "ethtool", "xdp-tools"),
              ("strongswan-charon", "strongswan-swanctl", "strongswan-pki",
               "libstrongswan-standard-plugins", "libstrongswan-extra-plugins",
               "libcharon-extra-plugins"),
              ("charon-systemd",)),
}


class Unavailable(Exception):
    """The packages cannot be had; the text says why."""


def cache():
    """Where the trees are: outside the checkout, one for all checkouts of a user."""
    own = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("SALLYPORT_VM_CACHE") or os.path.join(own, "sallyport", "vm")


@contextlib.contextmanager
def locked(name):
    """One process at a time fetches a tree, or makes a guest's memory image."""
    os.makedirs(cache(), exist_ok=True)
    with open(os.path.join(cache(), f"{name}.lock"), "w", encoding="ascii") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _path(name):
    """A tree whose list of packages has changed is another tree: an old checkout still has its own."""
    if name in SUITES:
        return os.path.join(cache(), name)
    digest = hashlib.sha256(json.dumps(PACKAGES[name]).encode()).hexdigest()[:8]
    return os.path.join(cache(), f"{name}-{digest}")


def drop_unused(pattern):
    """Removes folders and files of the cache that nobody has used for two weeks."""
    for path in glob.glob(os.path.join(cache(), pattern)):
        if time.time() - os.path.getmtime(path) > 14 * 86400:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


_refused = {}  # tree -> why it cannot be had: it is tried once in a process


def tree(name):
    """The folder of a tree, fetched when it is not there yet."""
    folder = _path(name)
    if name in _refused:
        raise Unavailable(_refused[name])
    if not os.path.exists(folder):
        try:
            with locked("fetch"):
                if not os.path.exists(folder):  # another process may have been faster
                    _fetch(name, folder)
        except (Unavailable, OSError) as e:
            _refused[name] = f"packages for {name} cannot be had: {e}"
            raise Unavailable(_refused[name]) from None
    os.utime(folder)
    return folder


def fetch_all():
    """All trees; says of those that cannot be had why, and tells whether there are any."""
    for name in (*PACKAGES, *KERNELS):
        try:
            tree(name)
        except Unavailable as e:
            print(f"vm: {e}", file=sys.stderr, flush=True)
    return not _refused


def _run(*argv, cwd=None):
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=900, check=False,
                          env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
        raise Unavailable(f"{argv[0]}: {'; '.join(said[-3:])}")
    return done.stdout


class _Apt:
    """apt with sources, lists and a download folder of our own."""

    def __init__(self):
        self.folder = os.path.join(cache(), "apt")
        self.archives = os.path.join(self.folder, "archives")
        for need in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(self.folder, need), exist_ok=True)
        sources = os.path.join(self.folder, "sources.list")
        with open(sources, "w", encoding="ascii") as f:
            f.writelines(f"{line}\n" for line in self._sources())
        self.options = [word for option in (
            f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/nonexistent",
            f"Dir::State::Lists={self.folder}/lists", f"Dir::Cache={self.folder}",
            "Debug::NoLocking=1", "APT::Sandbox::User=root", "Acquire::Retries=3",
            "Acquire::Languages=none", "APT::Install-Recommends=0",
            # Files stay after a download: the next tree may want them, or the next try.
            "APT::Keep-Downloaded-Packages=1") for word in ("-o", option)]
        self.get("update", "-q", "-o", "APT::Update::Error-Mode=any")

    @staticmethod
    def _sources():
        found = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                     "Created-By: Packages").splitlines()
        own = sorted({tuple(line.split()) for line in found if line.endswith(" main")})
        mirror = next((uri for uri, release, _ in own if release == "bookworm"), None)
        if mirror is None:
            raise Unavailable("this machine's apt has no source for Debian 12 (bookworm)")
        wanted = [(uri, release) for uri, release, _ in own if re.match("bookworm", release)]
        wanted += [(mirror, suite) for suite in SUITES.values()]
        return [f"deb [signed-by={KEYRING}] {uri} {release} main"
                for uri, release in dict.fromkeys(wanted)]

    def get(self, *words, cwd=None):
        return _run("apt-get", *self.options, *words, cwd=cwd)

    def show(self, *words):
        return _run("apt-cache", *self.options, *words)

    def resolved(self, packages):
        """.deb files of packages, and of what they need that this machine has not."""
        said = self.get("install", "-y", "-q", "--reinstall", "--print-uris", *packages)
        files = [line.split()[1] for line in said.splitlines() if line.startswith("'")]
        if not files:
            raise Unavailable(f"apt offers nothing for {' '.join(packages)}")
        self.get("install", "-y", "-q", "--reinstall", "--download-only", *packages)
        return [os.path.join(self.archives, f) for f in files]

    def kernel(self, suite):
        """.deb files of a suite's newest kernel; its packages have a version in their names."""
        listed = [line.split("|") for line in self.show("madison", "linux-image-amd64").splitlines()]
        version = next((v.strip() for _, v, origin in listed if f" {suite}/" in origin), None)
        if version is None:
            raise Unavailable(f"the mirror has no kernel in {suite}")
        wanted, files = [f"linux-image-amd64={version}"], []
        for package in wanted:  # grows while it is read: what the packages of the kernel depend on
            said = self.show("show", package)
            depends = re.search(r"^Depends: (.*)$", said, re.M)
            for name, exact in re.findall(r"(linux-(?:image|binary|modules|base)-[^ ,]+) \(= ([^)]+)\)",
                                          depends.group(1) if depends else ""):
                if f"{name}={exact}" not in wanted:
                    wanted.append(f"{name}={exact}")
        for package in wanted[1:]:
            name = package.partition("=")[0]
            self.get("download", "-q", package, cwd=self.archives)
            files += glob.glob(os.path.join(self.archives, f"{name}_*.deb"))
        return files


def _fetch(name, folder):
    print(f"vm: fetching {name} into {folder}", file=sys.stderr, flush=True)
    try:
        apt = _Apt()
        files = (apt.kernel(SUITES[name]) if name in SUITES else
                 [f for packages in PACKAGES[name] for f in apt.resolved(packages)])
        part = f"{folder}.part"
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        for file in dict.fromkeys(files):
            _run("dpkg-deb", "-x", file, part)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(str(e)) from None
    _merge_usr(part)
    with open(os.path.join(part, "packages"), "w", encoding="utf-8") as f:
        f.writelines(f"{os.path.basename(file)}\n" for file in sorted(set(files)))
    drop_unused(f"{name}-*")
    os.rename(part, folder)
    for file in set(files):  # only an unfinished tree needs them again
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)


def _merge_usr(folder):
    """Laid over a root, a real /bin or /lib would hide that root's own."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.isdir(old := os.path.join(folder, name)):
            shutil.copytree(old, os.path.join(folder, "usr", name), symlinks=True,
                            dirs_exist_ok=True)
            shutil.rmtree(old)


if __name__ == "__main__":
    sys.exit(0 if fetch_all() else 1)
