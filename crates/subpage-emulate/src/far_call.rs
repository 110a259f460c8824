//! Far calls to a code segment (SDM Vol. 2, "CALL").

use iced_x86::{Instruction, OpKind};

use super::bits::{CR0_PE, EFER_LMA, RFLAGS_VM};
use super::descriptor::Table;
use super::implied::{Bytes, Effect, Surroundings, next_rip};
use super::linear::read_linear;
use super::segment;
use super::store::{effective_address, set_stack_pointer};
use super::{Access, Exception, Fault, Incomplete, Store, Unsupported, is_canonical};
use crate::guest::{PhysicalMemory, Segment, State};

/// What a far call names.
struct Target {
    selector: u16,
    offset: u64,
}

impl<M: PhysicalMemory> Surroundings<'_, M> {
    /// Pushes CS and (R|E)IP and goes to another code segment of the same privilege level.
    ///
    /// Gates and task switches, which go elsewhere, and the first use of a segment, which marks its
    /// descriptor, are unsupported.
    pub(super) fn far_call(&self, store: &Store, state: &State) -> Result<Effect, Incomplete> {
        let instruction = store.instruction();
        let unit = store.length() / 2;
        let target = self.target(instruction, state, unit)?;
        let real = state.cr0 & CR0_PE == 0 || state.rflags & RFLAGS_VM != 0;
        let cs = if real {
            let base = u64::from(target.selector) << 4;
            Segment { selector: target.selector, base, ..state.segments.cs }
        } else {
            self.code_segment(&target, state)?
        };
        let mut after = *state;
        after.segments.cs = cs;
        let reachable = if after.is_64_bit() {
            is_canonical(target.offset)
        } else {
            target.offset <= cs.limit.into()
        };
        if !reachable {
            return Err(Exception::general_protection(0).into());
        }
        after.rip = target.offset;
        set_stack_pointer(&mut after, store.offset());
        let mut bytes = arrayvec::ArrayVec::new();
        for value in [next_rip(instruction, state), state.segments.cs.selector.into()] {
            bytes.extend(value.to_le_bytes().into_iter().take(unit));
        }
        Ok(Effect { bytes: Bytes::Short(bytes), unit, after, jumps: true })
    }

    fn target(
        &self,
        instruction: &Instruction,
        state: &State,
        unit: usize,
    ) -> Result<Target, Fault> {
        Ok(match instruction.op0_kind() {
            OpKind::FarBranch16 => Target {
                selector: instruction.far_branch_selector(),
                offset: instruction.far_branch16().into(),
            },
            OpKind::FarBranch32 => Target {
                selector: instruction.far_branch_selector(),
                offset: instruction.far_branch32().into(),
            },
            _ => {
                let bytes = unit + 2;
                let offset = effective_address(instruction, 0, state);
                let name = instruction.memory_segment();
                let from = segment::linear(state, name, offset, bytes as u64, false)?;
                let mut pointer = [0; 10];
                let access = Access::read_by(state);
                let read = &mut pointer[..bytes];
                read_linear(self.memory, self.paging, state, from, access, read)?;
                let mut offset = [0; 8];
                offset[..unit].copy_from_slice(&pointer[..unit]);
                Target {
                    selector: u16::from_le_bytes([pointer[unit], pointer[unit + 1]]),
                    offset: u64::from_le_bytes(offset),
                }
            }
        })
    }

    /// The code segment that a selector names, as CS will hold it.
    fn code_segment(&self, target: &Target, state: &State) -> Result<Segment, Incomplete> {
        let table = Table { memory: self.memory, paging: self.paging, tables: self.tables };
        let (descriptor, _) = table.descriptor(state, target.selector, 0)?;
        let code = u32::from(target.selector & !3);
        let refused = Exception::general_protection(code).into();
        if !descriptor.not_system() {
            return Err(Incomplete::Unsupported(Unsupported::FarCall));
        }
        let long = state.efer & EFER_LMA != 0 && descriptor.long();
        let privilege = if descriptor.conforming() {
            descriptor.dpl() <= state.cpl
        } else {
            target.selector & 3 <= state.cpl.into() && descriptor.dpl() == state.cpl
        };
        if !descriptor.executable() || long && descriptor.big() || !privilege {
            return Err(refused);
        }
        if !descriptor.present() {
            return Err(Exception::not_present(code).into());
        }
        if !descriptor.accessed() {
            return Err(Incomplete::Unsupported(Unsupported::DescriptorMark));
        }
        Ok(descriptor.segment(target.selector & !3 | u16::from(state.cpl)))
    }
}
