//! Far calls to a code segment (SDM Vol. 2, "CALL").

use iced_x86::{Instruction, OpKind, Register as Name};

use super::bits::{CR0_PE, EFER_LMA, RFLAGS_VM};
use super::descriptor::Table;
use super::extent::Extent;
use super::implied::{Bytes, Effect, Surroundings, next_rip};
use super::linear::read_linear;
use super::segment;
use super::store::{effective_address, set_stack_pointer, stack_mask, stack_pointer};
use super::{
    Access, Exception, Executor, Fault, Incomplete, Refusal, Store, Unsupported, is_canonical,
};
use crate::guest::{PhysicalMemory, Register, Segment, State};

/// What a far call names.
struct Target {
    selector: u16,
    offset: u64,
}

/// Where a far call leads.
struct Entered {
    /// The state with CS as it is there.
    state: State,
    /// RIP there, as far as the code segment has bits for it.
    offset: u64,
    /// The segment was not used before.
    is_fresh: bool,
}

impl<M: PhysicalMemory> Executor<'_, M> {
    /// Tells where a far call pushes. In IA-32e mode base and width of the stack are those of the mode
    /// that it goes to (measured on a processor of AMD's; Bochs does the same, and the SDM's executable
    /// specification gives its pushes the new code segment).
    pub(super) fn settle_far_call(&self, store: &Store, state: &State) -> Result<Store, Refusal> {
        let there = match self.surroundings().entered(store, state) {
            Ok(entered) => entered.state,
            Err(Incomplete::Unsupported(why)) => return Err(why.into()),
            // What is wrong with the target is told where the call is carried out.
            Err(_) => *state,
        };
        let (linear, offset) = frame(store, &there)?;
        Ok(store.clone().moved_to(linear, offset).with_extent(Extent::Whole))
    }
}

/// Linear address of what a far call pushes on the stack of `state`, and its offset in that.
fn frame(store: &Store, state: &State) -> Result<(u64, u64), Exception> {
    let length = store.length() as u64;
    let offset = stack_pointer(state).wrapping_sub(length) & stack_mask(state);
    Ok((segment::linear(state, Name::SS, offset, length, true)?, offset))
}

impl<M: PhysicalMemory> Surroundings<'_, M> {
    /// Pushes CS and (R|E)IP and goes to another code segment of the same privilege level.
    ///
    /// Gates and task switches, which go elsewhere, and the first use of a segment, which marks its
    /// descriptor, are unsupported.
    pub(super) fn far_call(&self, store: &Store, state: &State) -> Result<Effect, Incomplete> {
        let Entered { state: mut after, offset, is_fresh } = self.entered(store, state)?;
        if is_fresh {
            return Err(Incomplete::Unsupported(Unsupported::DescriptorMark));
        }
        let reachable = if after.is_64_bit() {
            is_canonical(offset)
        } else {
            offset <= after.segments.cs.limit.into()
        };
        if !reachable {
            return Err(Exception::general_protection(0).into());
        }
        if frame(store, &after)? != (store.linear(), store.offset()) {
            // Another processor has changed the target since the store was found.
            return Err(Incomplete::Unsupported(Unsupported::FarCall));
        }
        after.rip = offset;
        if !after.is_64_bit() && state.is_64_bit() {
            // The upper half does not outlive the change.
            after.registers[Register::Rsp] &= 0xffff_ffff;
        }
        set_stack_pointer(&mut after, store.offset());
        let unit = store.length() / 2;
        let next = next_rip(store.instruction(), state);
        let mut bytes = arrayvec::ArrayVec::new();
        for value in [next, state.segments.cs.selector.into()] {
            bytes.extend(value.to_le_bytes().into_iter().take(unit));
        }
        Ok(Effect { bytes: Bytes::Short(bytes), unit, after, jumps: true })
    }

    fn entered(&self, store: &Store, state: &State) -> Result<Entered, Incomplete> {
        let target = self.target(store.instruction(), state, store.length() / 2)?;
        let real = state.cr0 & CR0_PE == 0 || state.rflags & RFLAGS_VM != 0;
        let (cs, is_fresh) = if real {
            let base = u64::from(target.selector) << 4;
            (Segment { selector: target.selector, base, ..state.segments.cs }, false)
        } else {
            self.code_segment(&target, state)?
        };
        let mut there = *state;
        there.segments.cs = cs;
        let offset = if there.is_64_bit() { target.offset } else { target.offset & 0xffff_ffff };
        Ok(Entered { state: there, offset, is_fresh })
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

    /// The code segment that a selector names, as CS will hold it, and whether it was not used before.
    fn code_segment(&self, target: &Target, state: &State) -> Result<(Segment, bool), Incomplete> {
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
        let segment = descriptor.segment(target.selector & !3 | u16::from(state.cpl));
        Ok((segment, !descriptor.accessed()))
    }
}
