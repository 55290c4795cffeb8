# SPDX-License-Identifier: Apache-2.0
"""What QEMU boots: a kernel out of its wrapping, and a small root that then mounts the real one."""

import glob
import hashlib
import lzma
import os
import shutil
import subprocess
import tempfile

from . import trees

BOOT_MODULES = ("9pnet_virtio", "9p", "overlay")
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Image:
    """Files of one kernel, made on first use and again when a tree or the boot script changes."""

    def __init__(self, kernel):
        self.kernel_tree = trees.tree(kernel)
        self.extra = trees.tree("extra")
        self.modules = glob.glob(f"{self.kernel_tree}/usr/lib/modules/*")[0]
        self.release = os.path.basename(self.modules)
        init = os.path.join(os.path.dirname(os.path.abspath(__file__)), "init.sh")
        digest = hashlib.sha256(_read(init) + _read(__file__) + self.release.encode()
                                + _read(f"{self.kernel_tree}/packages")).hexdigest()[:16]
        self.folder = os.path.join(trees.cache(), "images", f"{kernel}-{digest}")
        self.vmlinux = os.path.join(self.folder, "vmlinux")
        self.initramfs = os.path.join(self.folder, "initramfs")
        if not os.path.exists(self.folder):
            with trees.locked("images"):
                if not os.path.exists(self.folder):
                    self._build(init)
        os.utime(self.folder)

    def _build(self, init):
        parent = os.path.dirname(self.folder)
        os.makedirs(parent, exist_ok=True)
        trees.drop_unused("images/*")
        part = tempfile.mkdtemp(dir=parent, prefix="part-")
        self._unwrap_kernel(os.path.join(part, "vmlinux"))
        if not os.path.exists(f"{self.modules}/modules.dep"):
            subprocess.run(["depmod", "-b", f"{self.kernel_tree}/usr", self.release],
                           executable=f"{self.extra}/usr/bin/kmod", check=True)
        self._pack(os.path.join(part, "initramfs"), init)
        os.rename(part, self.folder)

    def _unwrap_kernel(self, path):
        """QEMU starts the bare ELF file at once; the kernel's own decompressor takes seconds here."""
        wrapped = f"{self.modules}/vmlinuz"
        if not os.path.exists(wrapped):
            wrapped = f"{self.kernel_tree}/boot/vmlinuz-{self.release}"
        content, at = _read(wrapped), -1
        while (at := content.find(ZSTD_MAGIC, at + 1)) >= 0:
            done = subprocess.run([f"{self.extra}/usr/bin/zstd", "-dcq"], input=content[at:],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
            if done.stdout.startswith(b"\x7fELF"):  # what follows the stream is not zstd's: it complains
                with open(path, "wb") as f:
                    f.write(done.stdout)
                return
        raise trees.Unavailable(f"no zstd-compressed kernel in {wrapped}")

    def _pack(self, path, init):
        with tempfile.TemporaryDirectory() as root:
            for folder in ("bin", "dev", "proc", "sys", "modules"):
                os.mkdir(os.path.join(root, folder))
            busybox = f"{self.extra}/usr/bin/busybox"
            shutil.copy(busybox, f"{root}/bin/busybox")
            os.symlink("busybox", f"{root}/bin/sh")
            shutil.copy(init, f"{root}/init")
            os.chmod(f"{root}/init", 0o755)
            order = []
            for module in self._needed_modules():
                name = os.path.basename(module).removesuffix(".xz")
                content = _read(os.path.join(self.modules, module))
                with open(f"{root}/modules/{name}", "wb") as f:
                    f.write(lzma.decompress(content) if module.endswith(".xz") else content)
                order.append(name)
            with open(f"{root}/modules/order", "w", encoding="ascii") as f:
                f.write("\n".join(order) + "\n")
            names = [os.path.relpath(os.path.join(where, name), root)
                     for where, folders, files in os.walk(root) for name in sorted(folders + files)]
            done = subprocess.run([busybox, "cpio", "-o", "-H", "newc"], cwd=root, check=True,
                                  input="\n".join(names).encode(), stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)
        with open(path, "wb") as f:
            f.write(done.stdout)

    def _needed_modules(self):
        """Paths of BOOT_MODULES and of what they need, each after what it needs."""
        needs = {}
        with open(f"{self.modules}/modules.dep", encoding="ascii") as f:
            for line in f:
                module, _, others = line.partition(":")
                name = os.path.basename(module).removesuffix(".xz").removesuffix(".ko")
                needs[name] = [*reversed(others.split()), module]
        return list(dict.fromkeys(m for name in BOOT_MODULES for m in needs.get(name, [])))


def _read(path):
    with open(path, "rb") as f:
        return f.read()
