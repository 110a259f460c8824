//! What a processor of the guest cannot do without and finds in pages that trap: for the message about a
//! guest that cannot continue, since a processor says nothing of why it could not.

use subpage::address::{ByteRange, Gfn, GfnRange, PAGE_BYTES};
use subpage_emulate::bits::{CR0_PE, EFER_LMA};
use subpage_emulate::guest::Register;
use subpage_emulate::{Access, read_linear, translate, walk_entries};

use super::StoreContext;
use crate::failure::{InTrap, Structure};
use crate::guard::Guard;
use crate::memory::GuestMemory;
use crate::vcpu::Interrupted;

/// Most that are told.
const TOLD: usize = 8;

/// Offset of RSP0 in a 64-bit task-state segment, and of the first of seven stacks of the interrupt stack
/// table.
const RSP0: u64 = 4;
const IST1: u64 = 36;

/// The structures that lie in pages that trap, at most some. None in real mode: KVM on AMD processors
/// resets one that had a triple fault before it tells.
pub fn in_traps(
    context: StoreContext<'_, impl GuestMemory>,
    guard: &Guard,
    at: &Interrupted,
) -> Vec<InTrap> {
    let (state, tables) = (&at.state, &at.tables);
    if state.cr0 & CR0_PE == 0 {
        return Vec::new();
    }
    let system = Access::SYSTEM_READ;
    let is_long = state.efer & EFER_LMA != 0;
    let stack_base = if state.is_64_bit() { 0 } else { state.segments.ss.base };
    // A push goes below.
    let stack = stack_base.wrapping_add(state.registers[Register::Rsp]).wrapping_sub(1);
    let mut places = vec![(Structure::Stack, stack, Access::read_by(state))];
    for (structure, base, limit) in [
        (Structure::Idt, tables.idtr.base, u64::from(tables.idtr.limit)),
        (Structure::Gdt, tables.gdtr.base, u64::from(tables.gdtr.limit)),
        (Structure::TaskState, tables.tr.base, u64::from(tables.tr.limit).min(0xffff)),
    ] {
        let pages = (0..=limit / PAGE_BYTES).map(|page| page * PAGE_BYTES).chain([limit]);
        places.extend(pages.map(|offset| (structure, base.wrapping_add(offset), system)));
    }
    if is_long {
        for offset in [RSP0].into_iter().chain((0..7).map(|stack| IST1 + 8 * stack)) {
            let mut pointer = [0; 8];
            let from = tables.tr.base.wrapping_add(offset);
            let read = read_linear(context.ram, context.paging, state, from, system, &mut pointer);
            let pointer = u64::from_le_bytes(pointer);
            if read.is_ok() && pointer != 0 {
                places.push((Structure::EventStack, pointer.wrapping_sub(1), system));
            }
        }
    }
    let mut found = Found { guard, told: Vec::new() };
    for &(structure, linear, access) in &places {
        if let Ok(walk) = translate(context.ram, context.paging, state, linear, access) {
            found.see(structure, walk.gpa.gfn());
        }
    }
    let rip_base = if state.is_64_bit() { 0 } else { state.segments.cs.base };
    let walked = places.iter().map(|place| place.1).chain([rip_base.wrapping_add(state.rip)]);
    for linear in walked {
        for entry in walk_entries(context.ram, context.paging, state, linear) {
            found.see(Structure::PageTable, entry.gfn());
        }
    }
    found.told
}

struct Found<'a> {
    guard: &'a Guard,
    told: Vec<InTrap>,
}

impl Found<'_> {
    fn see(&mut self, structure: Structure, gfn: Gfn) {
        let page = gfn.gpa();
        let known = self.told.iter().any(|it| (it.structure, it.page) == (structure, page));
        if known || self.told.len() == TOLD || !self.guard.traps().traps(gfn) {
            return;
        }
        let domain = self.guard.domain();
        let bytes = ByteRange::of_pages(GfnRange::one(gfn));
        let rule = domain.names_of(bytes).find_map(|name| domain.rules().touching(name).next());
        let rule = rule.map(|active| active.rule.name.to_string());
        self.told.push(InTrap { structure, page, rule });
    }
}
