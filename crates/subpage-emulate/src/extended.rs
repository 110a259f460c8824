//! The guest's x87, MMX, SSE and AVX registers, as FXSAVE or XSAVE stored them.

/// The x87, MMX and SSE state, as FXSAVE64 stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxArea(pub [u8; 512]);

/// Extended state in the standard format of XSAVE, with room for all but AMX: the first 512 bytes are
/// those of FXSAVE64, the next 64 the header (SDM Vol. 1, "XSAVE Area").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct XsaveArea(pub [u8; 4096]);

/// The guest's extended registers, to be worked on.
#[derive(Debug)]
pub enum Extended<'a> {
    /// None: the instruction is not one that [uses](super::Substitute::is_extended) any.
    Unused,
    /// x87, MMX and SSE registers, as FXSAVE64 stored them. All else is taken from the processor,
    /// where baseline x86-64 code of a hypervisor has left the guest's.
    Fx(&'a mut FxArea),
    /// All registers of the components in a mask like that of XCR0, as XSAVE64 stored them.
    Xsave {
        /// The registers.
        area: &'a mut XsaveArea,
        /// Components that both the guest and this processor have enabled; x87 and SSE among them.
        components: u64,
    },
}

impl Extended<'_> {
    /// The same registers for a shorter time.
    pub(super) fn reborrow(&mut self) -> Extended<'_> {
        match self {
            Self::Unused => Extended::Unused,
            Self::Fx(fx) => Extended::Fx(fx),
            Self::Xsave { area, components } => Extended::Xsave { area, components: *components },
        }
    }

    /// The value of an MMX register.
    ///
    /// Panics if there is none.
    pub(super) fn mmx(&self, number: usize) -> [u8; 8] {
        let area: &[u8] = match self {
            Self::Unused => panic!("an instruction gets the registers that it uses"),
            Self::Fx(fx) => &fx.0,
            Self::Xsave { area, .. } => &area.0,
        };
        // They lie in the order of the stack.
        let top = usize::from(area[offset::FSW + 1] >> 3 & 7);
        let at = offset::ST + 16 * (number.wrapping_sub(top) & 7);
        area[at..at + 8].try_into().expect("eight bytes")
    }

    /// FOP, FIP and FDP.
    pub(super) fn x87_pointers(&self) -> [u32; 3] {
        let area: &[u8] = match self {
            Self::Unused => panic!("an instruction gets the registers that it uses"),
            Self::Fx(fx) => &fx.0,
            Self::Xsave { area, .. } => &area.0,
        };
        let opcode = u16::from_le_bytes([area[offset::FOP], area[offset::FOP + 1]]) & 0x7ff;
        [opcode.into(), word(area, offset::FIP), word(area, offset::FDP)]
    }

    /// Sets MXCSR.
    pub(super) fn set_mxcsr(&mut self, mxcsr: u32) {
        let area: &mut [u8] = match self {
            Self::Unused => return,
            Self::Fx(fx) => &mut fx.0,
            Self::Xsave { area, .. } => &mut area.0,
        };
        area[offset::MXCSR..offset::MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
    }
}

/// Offsets in the first 512 bytes of either area, and in the header of XSAVE.
mod offset {
    pub(super) const FSW: usize = 2;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const MXCSR_MASK: usize = 28;
    pub(super) const ST: usize = 32;
    pub(super) const XSTATE_BV: usize = 512;
}

/// The state after FNINIT, with all SSE exceptions masked.
const fn initial<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    bytes[0] = 0x7f;
    bytes[1] = 0x03;
    bytes[offset::MXCSR] = 0x80;
    bytes[offset::MXCSR + 1] = 0x1f;
    bytes
}

impl FxArea {
    /// The state after FNINIT, with all SSE exceptions masked.
    pub const INITIAL: Self = Self(initial());
}

impl XsaveArea {
    /// All components in their initial configuration.
    pub const INITIAL: Self = Self(initial());

    /// Says that the SSE component is in use if MXCSR is not initial: XSAVE says that it is not as long
    /// as all vector registers are 0, and who takes XSTATE_BV at its word then drops MXCSR (SDM Vol. 1,
    /// "XSAVE-Managed Features", "Processor Tracking of XSAVE-Managed State").
    ///
    /// The registers in the area must be true, as XSAVE leaves them.
    pub fn keep_mxcsr(&mut self) {
        const SSE: u8 = 1 << 1;
        if word(&self.0, offset::MXCSR) != MXCSR_INITIAL {
            self.0[offset::XSTATE_BV] |= SSE;
        }
    }
}

/// All exceptions masked, no flag.
const MXCSR_INITIAL: u32 = 0x1f80;

/// The bits of MXCSR that the processor has which stored an area (SDM Vol. 1, "Guidelines for Writing to
/// the MXCSR Register").
pub(super) fn mxcsr_mask(area: &[u8]) -> u32 {
    match word(area, offset::MXCSR_MASK) {
        // A processor without DAZ.
        0 => 0xffbf,
        mask => mask,
    }
}

/// Clears the bits of MXCSR that restoring it would refuse.
pub(super) fn mask_mxcsr(area: &mut [u8], mask: u32) {
    let mxcsr = word(area, offset::MXCSR) & mask;
    area[offset::MXCSR..offset::MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
}

/// The addresses that an instruction has in the guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    /// Address of the instruction.
    pub(super) rip: u64,
    /// Offset of the destination in its segment.
    pub(super) offset: u64,
    /// What FOP is to say, if the instruction is one of the x87's.
    pub(super) x87_opcode: Option<u16>,
}

impl Addresses {
    /// A value of FOP that this instruction does not leave there, whatever its operand: the bits of its
    /// first byte are others.
    const fn other_opcode(opcode: u16) -> u16 {
        opcode ^ 0x7ff
    }

    /// Puts a value into FOP by which [`hide`](Self::hide) sees whether the processor has changed it, and
    /// returns what was there.
    pub(super) fn mark(&self, area: &mut [u8]) -> u16 {
        let before = opcode(area);
        if let Some(opcode) = self.x87_opcode {
            set_opcode(area, Self::other_opcode(opcode));
        }
        before
    }

    /// Takes the mark away: the instruction has not happened.
    pub(super) fn unmark(&self, area: &mut [u8], before: u16) {
        if self.x87_opcode.is_some() {
            set_opcode(area, before);
        }
    }

    /// Puts these where the x87 has noted the hypervisor's: `is_ours` tells its instructions, `window`
    /// is where its operand was, and `before` is what FOP was.
    ///
    /// A processor may leave FOP alone, or clear it, if no exception is pending (SDM Vol. 1, "Fopcode
    /// Compatibility Sub-mode"). What it has not written stays, and what it has cleared is 0.
    pub(super) fn hide(
        &self,
        area: &mut [u8],
        before: u16,
        is_ours: impl Fn(u64) -> bool,
        window: u64,
    ) {
        if is_ours(pointer(area, offset::FIP)) {
            area[offset::FIP..offset::FIP + 8].copy_from_slice(&self.rip.to_le_bytes());
        }
        if let Some(own) = self.x87_opcode {
            match opcode(area) {
                0 => {}
                marked if marked == Self::other_opcode(own) => set_opcode(area, before),
                _ => set_opcode(area, own),
            }
        }
        if pointer(area, offset::FDP) == window {
            area[offset::FDP..offset::FDP + 8].copy_from_slice(&self.offset.to_le_bytes());
        }
    }
}

fn opcode(area: &[u8]) -> u16 {
    u16::from_le_bytes([area[offset::FOP], area[offset::FOP + 1]])
}

fn set_opcode(area: &mut [u8], opcode: u16) {
    area[offset::FOP..offset::FOP + 2].copy_from_slice(&opcode.to_le_bytes());
}

fn word(area: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([area[at], area[at + 1], area[at + 2], area[at + 3]])
}

fn pointer(area: &[u8], at: usize) -> u64 {
    u64::from(word(area, at)) | u64::from(word(area, at + 4)) << 32
}
