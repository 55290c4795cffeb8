// SPDX-License-Identifier: Apache-2.0
#pragma once

// BPF instructions as numbers, for programs of a few lines that a test loads itself.

#include <linux/bpf.h>

#include <cstdint>

namespace sallyport::test {

inline bpf_insn instruction(int code, int dst, int src, int offset, int immediate) {
    bpf_insn insn{};
    insn.code = static_cast<uint8_t>(code);
    insn.dst_reg = static_cast<uint8_t>(dst & 0xf);
    insn.src_reg = static_cast<uint8_t>(src & 0xf);
    insn.off = static_cast<int16_t>(offset);
    insn.imm = immediate;
    return insn;
}

}  // namespace sallyport::test
