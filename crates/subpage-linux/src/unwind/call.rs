//! Whether an instruction that calls lies before an address.

use crate::address::RuntimeAddress;
use crate::memory::Memory;

/// Longest form that is looked for: FF /2 with a SIB byte, 32 bits of displacement and a prefix.
const LONGEST: usize = 8;

/// CALL rel32.
const NEAR: u8 = 0xe8;

/// The group of CALL r/m64, and of others.
const GROUP: u8 = 0xff;

/// Whether the bytes before a return address end with a near call. A kernel that calls by a register has
/// that in its code, and so has one that calls a thunk.
pub(super) fn is_before(memory: &dyn Memory, returns_to: u64) -> bool {
    let mut bytes = [0; LONGEST];
    let Some(start) = returns_to.checked_sub(LONGEST as u64) else { return false };
    memory.read(RuntimeAddress::new(start), &mut bytes) && ends_with_call(bytes)
}

fn ends_with_call(bytes: [u8; LONGEST]) -> bool {
    if bytes[LONGEST - 5] == NEAR {
        return true;
    }
    // FF /2: 2 bytes with a register or a plain address, 3 to 7 with SIB and displacement.
    (2..LONGEST).any(|length| {
        let [opcode, mod_rm] = [bytes[LONGEST - length], bytes[LONGEST - length + 1]];
        opcode == GROUP
            && mod_rm >> 3 & 7 == 2
            && form_length(mod_rm, || bytes.get(LONGEST - length + 2).copied()) == Some(length)
    })
}

/// Length of FF with this ModRM byte, in 64-bit mode (SDM Vol. 2A, "ModR/M and SIB Bytes").
fn form_length(mod_rm: u8, sib: impl Fn() -> Option<u8>) -> Option<usize> {
    let (mode, rm) = (mod_rm >> 6, mod_rm & 7);
    if mode == 3 {
        return Some(2);
    }
    let has_sib = rm == 4;
    let displacement = match mode {
        0 if rm == 5 => 4,
        0 if has_sib => {
            if sib()? & 7 == 5 {
                4
            } else {
                0
            }
        }
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(2 + usize::from(has_sib) + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_other_code() {
        for (code, is_call) in [
            (&[0xe8, 1, 2, 3, 4][..], true),
            // call rax; call r11; call [rax]; call [rax+8]; call [rip+0x10]; call [rax+rcx*8];
            // call [0+rax*8]; call [rbx+0x1234].
            (&[0xff, 0xd0], true),
            (&[0x41, 0xff, 0xd3], true),
            (&[0xff, 0x10], true),
            (&[0xff, 0x50, 8], true),
            (&[0xff, 0x15, 0x10, 0, 0, 0], true),
            (&[0xff, 0x14, 0xc8], true),
            (&[0xff, 0x14, 0xc5, 0, 0, 0, 0], true),
            (&[0xff, 0x93, 0x34, 0x12, 0, 0], true),
            // jmp rax; jmp rel32; push [rax]; nop; call with bytes behind it.
            (&[0xff, 0xe0], false),
            (&[0xe9, 1, 2, 3, 4], false),
            (&[0xff, 0x30], false),
            (&[0x90, 0x90], false),
            (&[0xff, 0xd0, 0x90], false),
            (&[0xe8, 1, 2, 3, 4, 0x90], false),
            (&[0xff, 0x15, 0x10, 0, 0], false),
        ] {
            let mut bytes = [0x90; LONGEST];
            bytes[LONGEST - code.len()..].copy_from_slice(code);
            assert_eq!(ends_with_call(bytes), is_call, "{code:02x?}");
        }
    }
}
