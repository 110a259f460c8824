//! Single entries: mostly good, sometimes with one thing odd.

use fastrand::Rng;

use super::chance;

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const SUB_PAGE: u64 = 1 << 61;

/// A bit of the address that a processor of 40 bits has not.
fn beyond_width(random: &mut Rng) -> u64 {
    1 << random.u32(40..52)
}

/// A bit of an EPT entry that the processor ignores with the controls that a case has.
fn ignored(random: &mut Rng) -> u64 {
    let bits = [8, 10, 11, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63];
    1 << bits[random.usize(..bits.len())]
}

/// An EPT entry without R, W and X: all else is nothing to the processor.
fn absent(random: &mut Rng, address: u64) -> u64 {
    let rest = match random.u32(..4) {
        0 => address,
        // Executable in user mode, where that means something.
        1 => address | 1 << 10,
        _ => random.u64(..),
    };
    rest & !(READ | WRITE | EXECUTE)
}

/// An EPT entry that names the table at `table`; plain in `good` of a hundred cases.
pub(super) fn ept_link(random: &mut Rng, table: u64, good: u32) -> u64 {
    let plain = table | READ | WRITE | EXECUTE;
    if chance(random, good) {
        return plain;
    }
    match random.u32(..16) {
        0..5 => plain & !WRITE,
        5 => plain & !EXECUTE,
        6 => table | READ,
        7 => table | EXECUTE,
        8 => table | WRITE | EXECUTE,
        9 => absent(random, table),
        10 => 0,
        // Bit 6:3, or bit 7: a leaf that is not aligned, or an entry of the root.
        11 => plain | 1 << random.u32(3..8),
        12 => plain | beyond_width(random),
        13 => plain & !WRITE | SUB_PAGE,
        _ => plain | ignored(random),
    }
}

/// An EPT leaf for a page of 2^`order` bytes at `page`.
pub(super) fn ept_leaf(random: &mut Rng, page: u64, order: u32) -> u64 {
    let rights = match random.u32(..20) {
        0..3 => READ | WRITE | EXECUTE,
        3 => READ | EXECUTE,
        4 => READ | SUB_PAGE,
        5 => READ | WRITE | EXECUTE | SUB_PAGE,
        6 => READ | WRITE,
        7 => EXECUTE | SUB_PAGE,
        // Any, legal or not.
        8 => random.u64(..8) | SUB_PAGE,
        9 => random.u64(..8),
        _ => READ | EXECUTE | SUB_PAGE,
    };
    if rights & (READ | WRITE | EXECUTE) == 0 {
        return absent(random, page);
    }
    let kind = if chance(random, 92) { 6 } else { random.u64(..8) };
    let mut leaf = page | kind << 3 | rights;
    if order > 12 {
        leaf |= LARGE;
        if chance(random, 20) {
            // Bit 12 is the PAT bit of ordinary large pages, the others are reserved there too.
            leaf |= 1 << if random.bool() { 12 } else { random.u32(12..order) };
        }
    } else if chance(random, 5) {
        // Ignored in an entry of the last level.
        leaf |= LARGE;
    }
    // Accessed and dirty, as an earlier time may have left them.
    if chance(random, 30) {
        leaf |= random.u64(..4) << 8;
    }
    match random.u32(..40) {
        0 => leaf | beyond_width(random),
        1 => leaf | 1 << 6,
        2 | 3 => leaf | ignored(random),
        _ => leaf,
    }
}

/// An SPPT entry of level 4, 3 or 2 that names the table at `table`.
pub(super) fn sppt_link(random: &mut Rng, table: u64) -> u64 {
    let plain = table | 1;
    if chance(random, 94) {
        return plain;
    }
    match random.u32(..7) {
        0 => table,
        1 => 0,
        2 => plain | 1 << random.u32(1..12),
        3 => plain | 1 << random.u32(52..64),
        4 => plain | beyond_width(random),
        // Not valid, with a reserved bit.
        5 => table | 1 << random.u32(1..12),
        _ => table | 1 << random.u32(52..64),
    }
}

/// An SPPT entry of level 1.
pub(super) fn vector(random: &mut Rng) -> u64 {
    let map = match random.u32(..12) {
        0 => 0,
        1 => u32::MAX,
        2 => 1 << random.u32(..32),
        3..5 => !(1 << random.u32(..32)),
        5 => 1,
        6 => 1 << 31,
        7 => u32::MAX << random.u32(..32),
        _ => random.u32(..),
    };
    let even = (0..32).fold(0, |bits, at| bits | u64::from(map >> at & 1) << (2 * at));
    if chance(random, 3) { even | 2 << (2 * random.u32(..32)) } else { even }
}

/// An entry of the guest's own tables that maps a page or names a table of 2^`order` bytes, as a
/// `leaf` or not; plainly writable and executable in `good` of a hundred cases.
pub(super) fn guest_entry(
    random: &mut Rng,
    address: u64,
    (order, leaf): (u32, bool),
    user: bool,
    good: u32,
) -> u64 {
    let address = if leaf && order > 12 { address & !((1 << order) - 1) | LARGE } else { address };
    // The PAT bit, which stands below the address of a large page.
    let pat = if leaf && order > 12 && chance(random, 25) { 1 << 12 } else { 0 };
    let plain = address | pat | 0b11 | if user { 0b100 } else { 0 };
    // Accessed and dirty.
    let plain = plain | random.u64(..4) << 5;
    if chance(random, good) {
        return plain;
    }
    match random.u32(..14) {
        0..4 => plain & !0b10,
        4..7 => plain | 1 << 63,
        7 => plain & !1,
        // The other privilege.
        8..11 => plain ^ 0b100,
        11 => plain | beyond_width(random),
        // A reserved bit in the root or, but for the PAT bit, in a large leaf; ignored elsewhere.
        12 if leaf && order > 12 => plain | 1 << random.u32(12..order),
        12 if order == 39 || order == 12 => plain | LARGE,
        // Cache control, global, ignored bits, protection key.
        _ => {
            let bits = [3, 4, 8, 9, 10, 11, 52, 58, 59, 62];
            plain | 1 << bits[random.usize(..bits.len())]
        }
    }
}
