//! Descriptors of segments, and the tables that they lie in (SDM Vol. 3A, "Segment Descriptors").

use bitfield_struct::bitfield;

use super::linear::read_linear;
use super::{Access, Exception, Fault, PagingFeatures, SystemTables};
use crate::guest::{PhysicalMemory, Segment, State};

/// The global and the local table of a processor.
pub(super) struct Table<'a, M> {
    pub(super) memory: &'a M,
    pub(super) paging: PagingFeatures,
    pub(super) tables: &'a SystemTables,
}

impl<M: PhysicalMemory> Table<'_, M> {
    /// The descriptor that a selector names, as if it were one of a code segment, and where it lies.
    ///
    /// `external` is bit 0 of the error codes: #GP for the null selector and for one beyond its table.
    pub(super) fn descriptor(
        &self,
        state: &State,
        selector: u16,
        external: u32,
    ) -> Result<(CodeDescriptor, u64), Fault> {
        const UNUSABLE: u32 = 1 << 16;
        if selector & !3 == 0 {
            return Err(Exception::general_protection(external).into());
        }
        let beyond = Exception::general_protection(u32::from(selector & !3) | external);
        let (gdtr, ldtr) = (&self.tables.gdtr, &self.tables.ldtr);
        let (base, limit) = match selector & 4 {
            0 => (gdtr.base, u64::from(gdtr.limit)),
            _ if ldtr.access & UNUSABLE == 0 => (ldtr.base, u64::from(ldtr.limit)),
            _ => return Err(beyond.into()),
        };
        let at = u64::from(selector & !7);
        if at + 7 > limit {
            return Err(beyond.into());
        }
        let linear = base.wrapping_add(at);
        let mut bytes = [0; 8];
        read_linear(self.memory, self.paging, state, linear, Access::SYSTEM_READ, &mut bytes)?;
        Ok((CodeDescriptor::from_bits(u64::from_le_bytes(bytes)), linear))
    }
}

/// A code-segment descriptor.
#[bitfield(u64)]
pub(super) struct CodeDescriptor {
    limit_low: u16,
    #[bits(24)]
    base_low: u32,
    pub(super) accessed: bool,
    readable: bool,
    pub(super) conforming: bool,
    pub(super) executable: bool,
    pub(super) not_system: bool,
    #[bits(2)]
    pub(super) dpl: u8,
    pub(super) present: bool,
    #[bits(4)]
    limit_high: u8,
    available: bool,
    pub(super) long: bool,
    pub(super) big: bool,
    granular: bool,
    base_high: u8,
}

impl CodeDescriptor {
    /// The segment register after loading it.
    pub(super) const fn segment(self, selector: u16) -> Segment {
        let limit = self.limit_low() as u32 | (self.limit_high() as u32) << 16;
        let rights = self.into_bits() >> 40 & 0xf0ff;
        let [access_low, access_high, ..] = rights.to_le_bytes();
        Segment {
            selector,
            base: self.base_low() as u64 | (self.base_high() as u64) << 24,
            limit: if self.granular() { limit << 12 | 0xfff } else { limit },
            access: access_low as u32 | (access_high as u32) << 8 | 1,
        }
    }
}
