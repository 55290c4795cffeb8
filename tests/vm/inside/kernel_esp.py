# SPDX-License-Identifier: Apache-2.0
"""The kernel's own ESP as a peer: tunnel-mode SAs and policies for `ip -batch`."""

import dataclasses
import secrets


@dataclasses.dataclass
class Pair:
    """Two SAs of a tunnel; local and remote are seen from Sallyport, `near` and `far` its ends."""
    name: str
    local: str
    remote: str
    near: str
    far: str
    bits: int = 128
    esn: bool = False
    spi_in: int = 0
    spi_out: int = 0
    key_in: bytes = b""   # key and 4-byte salt
    key_out: bytes = b""

    def __post_init__(self):
        self.spi_in = self.spi_in or secrets.randbelow(2**32 - 512) + 256
        self.spi_out = self.spi_out or secrets.randbelow(2**32 - 512) + 256
        self.key_in = self.key_in or secrets.token_bytes(self.bits // 8 + 4)
        self.key_out = self.key_out or secrets.token_bytes(self.bits // 8 + 4)

    def toml(self):
        """Policy and static SAs of sallyportd's configuration."""
        common = (f'suite = "aes-gcm-16-{self.bits}"\nesn = {str(self.esn).lower()}\n'
                  f'policy = "{self.name}"\n')
        return (f'[[policy]]\nname = "{self.name}"\naction = "protect"\nlocal = "{self.local}"\n'
                f'remote = "{self.remote}"\n'
                f'[[sa]]\nname = "{self.name}-in"\ndirection = "inbound"\nspi = {self.spi_in}\n'
                f'source = "{self.far}"\ndestination = "{self.near}"\nkey = "{self.key_in.hex()}"\n'
                f'replay_window = 64\n{common}'
                f'[[sa]]\nname = "{self.name}-out"\ndirection = "outbound"\nspi = {self.spi_out}\n'
                f'source = "{self.near}"\ndestination = "{self.far}"\nkey = "{self.key_out.hex()}"\n'
                f'{common}')

    def peer_lines(self):
        """`ip` lines that make the kernel of a namespace the far end."""
        flags = "flag af-unspec" + (" flag esn" if self.esn else "")
        lines = [f"xfrm state add src {src} dst {dst} proto esp spi {spi:#x} reqid {spi:#x} mode tunnel"
                 f" replay-window 64 {flags} aead rfc4106(gcm(aes)) 0x{key.hex()} 128"
                 for src, dst, spi, key in ((self.near, self.far, self.spi_out, self.key_out),
                                            (self.far, self.near, self.spi_in, self.key_in))]
        for direction, src, dst, a, b, spi in (
                ("out", self.remote, self.local, self.far, self.near, self.spi_in),
                ("in", self.local, self.remote, self.near, self.far, self.spi_out),
                ("fwd", self.local, self.remote, self.near, self.far, self.spi_out)):
            lines.append(f"xfrm policy add src {src} dst {dst} dir {direction}"
                         f" tmpl src {a} dst {b} proto esp reqid {spi:#x} mode tunnel")
        return lines
