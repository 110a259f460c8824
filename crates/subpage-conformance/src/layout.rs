//! Where everything stands: frames of the arena, guest-physical windows, linear addresses.
//!
//! Half of the arena is the harness: code, stack, descriptor tables, and tables that map them, all
//! of them good. The other half is what cases play with. The two meet only in the roots: entry 0 of
//! a level-4 table belongs to the harness, entry 1 to the case.

use std::sync::OnceLock;

use subpage_vmx::conformance::format::{ARENA, guest};

/// Frames of 4 KiB, by their place in the arena.
///
/// The first 12 hold data. They are, with the four that follow, the pages of the windows: a large
/// leaf, which maps the arena from its beginning, gives a window's page i the frame i.
pub(crate) mod frame {
    /// Frames for guest tables that stand in a window: level 4, 3, 2, 1.
    pub(crate) const WINDOW_TABLES: u32 = 12;
    /// EPT root.
    pub(crate) const EPT_L4: u32 = 16;
    /// EPT tables of the harness, levels 3, 2, 1.
    pub(crate) const EPT_HARNESS: u32 = 17;
    /// EPT level 3 of the windows.
    pub(crate) const EPT_L3: u32 = 20;
    /// EPT level 2, one per window.
    pub(crate) const EPT_L2: u32 = 21;
    /// EPT level 1, one per window.
    pub(crate) const EPT_L1: u32 = 23;
    /// SPPT root.
    pub(crate) const SPPT_L4: u32 = 25;
    /// SPPT level 3.
    pub(crate) const SPPT_L3: u32 = 26;
    /// SPPT level 2, one per window.
    pub(crate) const SPPT_L2: u32 = 27;
    /// SPPT level 1, one per window.
    pub(crate) const SPPT_L1: u32 = 29;
    /// Guest code.
    pub(crate) const CODE: u32 = 32;
    /// Guest stack; RSP is its end.
    pub(crate) const STACK: u32 = 33;
    /// IDT, GDT and the task state segment.
    pub(crate) const DESCRIPTORS: u32 = 34;
    /// Bytes that wide stores take their data from.
    pub(crate) const SOURCE: u32 = 35;
    /// Where wide loads leave what they loaded.
    pub(crate) const SCRATCH: u32 = 36;
    /// Guest root.
    pub(crate) const GUEST_L4: u32 = 37;
    /// Guest tables of the harness, levels 3, 2, 1.
    pub(crate) const GUEST_HARNESS: u32 = 38;
    /// Guest tables of the linear window, levels 3, 2, 1, when they stand in the harness.
    pub(crate) const GUEST_TABLES: u32 = 41;
}

/// Pages of a window, and linear pages: as many as there are frames before the harness.
pub(crate) const PAGES: u32 = 16;
/// Pages of a window that map data rather than guest tables.
pub(crate) const DATA_PAGES: u32 = 12;

/// Windows of guest-physical memory that a case maps.
pub(crate) const WINDOWS: u32 = 2;

/// Guest-physical address of a harness frame; the linear address of code and data is the same.
pub(crate) const fn harness(frame: u32) -> u64 {
    guest::RIP + (frame as u64 - frame::CODE as u64) * 0x1000
}

/// Index of a harness frame in the lowest table that maps it, in EPT and guest alike.
pub(crate) const fn harness_index(frame: u32) -> u32 {
    (harness(frame) >> 12 & 0x1FF) as u32
}

/// Guest-physical address of a page of a window.
///
/// Its low 30 bits are those of the page's frame in the arena, so that leaves of every size can
/// reach it; each window has a level-3 entry of its own.
pub(crate) const fn window(window: u32, page: u32) -> u64 {
    1 << 39 | (window as u64 + 3) << 30 | ARENA | (page as u64) << 12
}

/// Level-3 index of a window.
pub(crate) const fn window_l3(window: u32) -> u32 {
    window + 3
}

/// Level-2 index of both windows.
pub(crate) const WINDOW_L2: u32 = (ARENA >> 21 & 0x1FF) as u32;

/// Linear address of a page of the linear window; the lowest index is the page's number.
///
/// Its low 30 bits are those of the window's page, so that guest pages of every size can reach it.
pub(crate) const fn linear(page: u32) -> u64 {
    1 << 39 | ARENA | (page as u64) << 12
}

/// Host-physical address of a frame.
pub(crate) const fn host(frame: u32) -> u64 {
    ARENA + frame as u64 * 4096
}

/// Index of an entry's word in the arena.
pub(crate) const fn word(frame: u32, index: u32) -> u32 {
    frame * 512 + index
}

/// Vector whose gate the guest's IDT holds.
pub(crate) const VECTOR: u8 = 0x40;

/// Linear address of the handler of [`VECTOR`]: the end of the descriptors' page, which is never a
/// user-mode one.
pub(crate) const HANDLER: u64 = harness(frame::DESCRIPTORS) + 0xF00;

/// Words that every case begins with: the harness.
pub(crate) fn template() -> &'static [(u32, u64)] {
    static TEMPLATE: OnceLock<Vec<(u32, u64)>> = OnceLock::new();
    TEMPLATE.get_or_init(make_template)
}

fn make_template() -> Vec<(u32, u64)> {
    let mut words = Vec::new();
    ept_harness(&mut words);
    guest_harness(&mut words);
    descriptors(&mut words);
    // VMCALL.
    words.push((word(frame::DESCRIPTORS, 0xF00 / 8), 0x00C1_010F));
    let mut random = fastrand::Rng::with_seed(0x5350_5020_6461_7461);
    words.extend((0..512).map(|index| (word(frame::SOURCE, index), random.u64(..))));
    fxsave_image(&mut words);
    words
}

/// First byte of the source page that holds an image for FXRSTOR.
pub(crate) const FXSAVE_IMAGE: u64 = harness(frame::SOURCE) + 0xE00;

/// Bytes that FXSAVE stores: the last 96 of its 512 are left alone.
pub(crate) const FXSAVE_BYTES: usize = 416;

/// Makes the random words at [`FXSAVE_IMAGE`] an image that comes out of the processor as it went
/// in: an empty FPU in its initial state, default MXCSR, addresses canonical, 80-bit registers.
fn fxsave_image(words: &mut Vec<(u32, u64)>) {
    let at = 0xE00 / 8;
    let mut set = |index: u32, value| words.push((word(frame::SOURCE, at + index), value));
    set(0, 0x037F);
    set(1, 0x1234_5678);
    set(2, 0x2345_6789);
    set(3, 0xFFFF << 32 | 0x1F80);
    for register in 0..8 {
        set(4 + register * 2, 0x8000_0000_0000_0001 + u64::from(register));
        set(5 + register * 2, 0x3FFF);
    }
}

/// Level-2 index of the harness in EPT and guest tables.
#[allow(clippy::cast_possible_truncation)]
const HARNESS_L2: u32 = (guest::RIP >> 21) as u32;
const _: () = assert!(HARNESS_L2 < 512, "the harness lies in the first GiB");

const EPT_LINK: u64 = 0b111;
const EPT_LEAF: u64 = 6 << 3 | 0b111;
/// Present, writable, accessed, dirty: nothing of the harness is ever changed by a walk.
const GUEST_GOOD: u64 = 0x63;
const GUEST_USER: u64 = 1 << 2;

/// An entry of the guest's own tables that leads to the harness, in either privilege.
pub(crate) const fn harness_link(frame: u32) -> u64 {
    harness(frame) | GUEST_GOOD | GUEST_USER
}

/// The guest's leaves for the harness: what code, stack and operands need is in user-mode pages at
/// CPL 3, and in supervisor-mode ones at CPL 0, as SMEP and SMAP demand.
pub(crate) fn harness_leaves(user: bool) -> impl Iterator<Item = (u32, u64)> {
    let system = [frame::DESCRIPTORS, frame::GUEST_HARNESS, frame::GUEST_HARNESS + 1, LEAVES];
    let frames = (frame::CODE..frame::GUEST_TABLES + 3).filter(move |it| !system.contains(it));
    let bit = if user { GUEST_USER } else { 0 };
    frames.map(move |frame| (word(LEAVES, harness_index(frame)), harness(frame) | GUEST_GOOD | bit))
}

/// The guest's table with the leaves of the harness.
const LEAVES: u32 = frame::GUEST_HARNESS + 2;

/// The task state segment with this RSP0. SDM Vol. 3A, "Task Management in 64-Bit Mode": it stands
/// at byte 4.
pub(crate) fn stack_of_level_0(stack: u64) -> [(u32, u64); 2] {
    let at = word(frame::DESCRIPTORS, (guest::TASK_STATE & 0xFFF) as u32 / 8);
    [(at, stack << 32), (at + 1, stack >> 32)]
}

fn ept_harness(words: &mut Vec<(u32, u64)>) {
    let l3 = frame::EPT_HARNESS;
    words.push((word(frame::EPT_L4, 0), host(l3) | EPT_LINK));
    words.push((word(l3, 0), host(l3 + 1) | EPT_LINK));
    words.push((word(l3 + 1, HARNESS_L2), host(l3 + 2) | EPT_LINK));
    for frame in frame::CODE..frame::GUEST_TABLES + 3 {
        words.push((word(l3 + 2, harness_index(frame)), host(frame) | EPT_LEAF));
    }
}

fn guest_harness(words: &mut Vec<(u32, u64)>) {
    let l3 = frame::GUEST_HARNESS;
    words.push((word(frame::GUEST_L4, 0), harness_link(l3)));
    words.push((word(l3, 0), harness_link(l3 + 1)));
    words.push((word(l3 + 1, HARNESS_L2), harness_link(LEAVES)));
    for frame in frame::CODE..frame::GUEST_TABLES + 3 {
        words.push((word(LEAVES, harness_index(frame)), harness(frame) | GUEST_GOOD));
    }
}

/// SDM Vol. 3A, "64-Bit Mode IDT" and "Segment Descriptors".
fn descriptors(words: &mut Vec<(u32, u64)>) {
    let gate = u32::from(VECTOR) * 2;
    let at = |address: u64| word(frame::DESCRIPTORS, (address & 0xFFF) as u32 / 8);
    let low = HANDLER & 0xFFFF
        | u64::from(guest::CODE) << 16
        | 0xEE << 40
        | (HANDLER >> 16 & 0xFFFF) << 48;
    words.push((at(guest::IDT) + gate, low));
    words.push((at(guest::IDT) + gate + 1, HANDLER >> 32));
    words.push((at(guest::GDT) + 1, 0x00AF_9B00_0000_FFFF));
    words.push((at(guest::GDT) + 2, 0x00CF_9300_0000_FFFF));
    let task = guest::TASK_STATE;
    let low = 0x67 | (task & 0xFF_FFFF) << 16 | 0x8B << 40 | (task >> 24 & 0xFF) << 56;
    words.push((at(guest::GDT) + 3, low));
    words.push((at(guest::GDT) + 4, task >> 32));
    words.push((at(guest::GDT) + 5, 0x00CF_F300_0000_FFFF));
    words.push((at(guest::GDT) + 6, 0x00AF_FB00_0000_FFFF));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use subpage_vmx::conformance::format::ARENA_FRAMES;

    #[test]
    fn addresses_agree_with_those_of_the_format() {
        assert_eq!(harness(frame::CODE), guest::RIP);
        assert_eq!(harness(frame::STACK) + 0x1000, guest::RSP);
        assert_eq!(harness(frame::DESCRIPTORS), guest::IDT);
        assert!(guest::IDT_BYTES > u16::from(VECTOR) * 16);
        const { assert!((frame::GUEST_TABLES + 3) as usize <= ARENA_FRAMES) };
        // A 1 GiB leaf at host-physical 0 and a 2 MiB leaf at the arena reach the page's frame.
        assert_eq!(window(1, 5) & 0x3FFF_FFFF, host(5));
        assert_eq!(window(1, 5) & 0x1F_FFFF, host(5) & 0x1F_FFFF);
        assert_eq!((window(1, 5) >> 30 & 0x1FF) as u32, window_l3(1));
        // So do guest pages of 2 MiB and 1 GiB at the window.
        assert_eq!(linear(5) & 0x3FFF_FFFF, window(1, 5) & 0x3FFF_FFFF);
        assert_eq!(guest::TASK_STATE & !0xFFF, harness(frame::DESCRIPTORS));
        const { assert!(guest::TASK_STATE >= guest::GDT + guest::GDT_BYTES as u64) };
        const { assert!(HANDLER >= guest::TASK_STATE + 0x68) };
    }

    #[test]
    fn words_before_the_source_page_are_set_once() {
        let words = template();
        let source = word(frame::SOURCE, 0)..word(frame::SCRATCH, 0);
        let others: Vec<_> =
            words.iter().map(|(word, _)| *word).filter(|word| !source.contains(word)).collect();
        assert_eq!(others.iter().collect::<HashSet<_>>().len(), others.len());
        assert!(words.iter().all(|(word, _)| *word >= frame::EPT_L4 * 512));
    }
}
