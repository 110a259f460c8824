//! Hypercalls that break things on purpose, so that tests can show that the hypervisor copes.
//!
//! Only with the feature `test-hooks`; the guest tests' `HOOKS.md` is the reference.

use alloc::vec::Vec;

use subpage::address::{Gfn, GfnRange, Gpa, Hpa};
use subpage::domain::{DomainError, EptViolation, HostPage};
use subpage::ept::MemoryType;
use subpage::exit::{ExitReason, VectoringInfo};
use subpage::frames::{EntryIndex, TableFrame, TableFrames};
use subpage::level::{Level, PageSize};
use subpage::rules::{Owner, RuleId};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage::sppt::SpptEntry;
use zerocopy::FromBytes;

use crate::abi::RuleRequest;
use crate::hypercall::{Errno, rule_of};
use crate::machine::Shared;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vmx::field::{ExitField, GuestField as G};
use subpage_emulate::bits::RFLAGS_IF;
use subpage_emulate::guest::{PhysicalMemory, Register};
use subpage_trap::Response;

const SPACE: AddressSpace = AddressSpace::Normal;

/// The guest's own memory is slot 0.
const OWN_SLOT: SlotId = SlotId(0);
const SLOTS: usize = 8;
const SLOT_PAGES: u64 = 64;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

struct ExtraSlot {
    first: Gfn,
    memory: Vec<Page>,
}

/// What the hooks keep.
#[derive(Default)]
#[allow(missing_debug_implementations)]
pub struct Hooks {
    slots: [Option<ExtraSlot>; SLOTS],
    /// SPPT entries that were broken: page, where, and what they were.
    broken: Vec<(Gfn, TableFrame, EntryIndex, u64)>,
}

impl Hooks {
    /// Host page of a frame that an extra slot holds.
    pub fn host_page(&self, gfn: Gfn) -> Option<Hpa> {
        self.slots.iter().flatten().find_map(|slot| {
            let number = gfn.as_u64().checked_sub(slot.first.as_u64())?;
            let page = slot.memory.get(usize::try_from(number).ok()?)?;
            Some(Hpa::new(core::ptr::from_ref(page) as u64))
        })
    }
}

type Answer = Result<u64, Errno>;

impl Vcpu {
    /// Keeps what an exit told.
    pub(crate) fn note_exit(
        &mut self,
        reason: ExitReason,
        qualification: u64,
        exit: &EptViolation,
    ) {
        self.last_exit = [
            reason.0.into(),
            qualification,
            exit.gpa.as_u64(),
            u32::from(exit.delivery.vectoring).into(),
            self.vmcs.exit(ExitField::INSTRUCTION_LENGTH),
            exit.rip,
        ];
    }

    pub(crate) fn test_hook(&mut self, number: u64) -> Result<u64, Stop> {
        let [rbx, rcx, rdx, rsi] = [Register::Rbx, Register::Rcx, Register::Rdx, Register::Rsi]
            .map(|register| self.register(register));
        let answer = match number {
            0x8000 => return Err(Stop::Ended { status: rbx }),
            0x8001 => {
                self.machine.leave_out(u32::try_from(rbx).ok());
                Ok(0)
            }
            0x8002 => self.break_sppt(rbx, rcx),
            0x8003 => self.inject_hook(rbx, rcx, rdx),
            0x8004 => self.counter(rbx),
            0x8005 => {
                let allowance = (rbx != u64::MAX).then_some(rbx);
                self.machine.lock().domain.frames_mut().set_allowance(allowance);
                Ok(0)
            }
            0x8006 => self.slot(rbx, rcx, rdx, rsi),
            0x8007 => self.protect(rbx, rcx, rdx),
            0x8008 => self.leaf(rbx),
            0x8009 => {
                self.machine.lock().denied =
                    if rbx == 2 { Response::Fault } else { Response::Skip };
                Ok(0)
            }
            0x800A => Ok(self.last_decision),
            0x800B => self.host_rule(rbx),
            0x800C => {
                let machine = self.machine;
                let mut shared = machine.lock();
                let token = shared.domain.remove_rule(RuleId(rbx), Owner::HOST);
                self.complete_hook(&mut shared, token)
            }
            0x800D => usize::try_from(rbx)
                .ok()
                .and_then(|field| self.last_exit.get(field).copied())
                .ok_or(Errno::Invalid),
            _ => Err(Errno::NoCall),
        };
        Ok(answer.unwrap_or_else(|errno| errno.to_result().cast_unsigned()))
    }

    fn complete_hook(
        &mut self,
        shared: &mut Shared,
        token: Result<subpage::invalidate::Invalidation, DomainError>,
    ) -> Answer {
        self.machine.complete(shared, self.index, token?);
        Ok(0)
    }

    /// Makes a change that no call of the engine makes hold everywhere.
    fn refresh(&mut self, shared: &mut Shared) -> Answer {
        self.vmcs.invalidate_ept();
        // Taking a right away and giving it back reaches every processor.
        let own = shared.domain.slots(SPACE).get(OWN_SLOT).map_err(DomainError::from)?.pages();
        let page = GfnRange::one(own.last());
        for writable in [false, true] {
            let token = shared.domain.protect(SPACE, page, writable);
            self.complete_hook(shared, token)?;
        }
        Ok(0)
    }

    fn break_sppt(&mut self, gpa: u64, operation: u64) -> Answer {
        let gfn = Gpa::try_new(gpa).map_err(|_| Errno::Invalid)?.gfn();
        let machine = self.machine;
        let mut shared = machine.lock();
        if operation == 2 {
            let at = shared.hooks.broken.iter().rposition(|entry| entry.0 == gfn);
            let (_, table, index, value) = shared.hooks.broken.remove(at.ok_or(Errno::NoEntry)?);
            shared.domain.frames_mut().store(table, index, value);
            let token = shared.domain.set_slot_flags(SPACE, OWN_SLOT, SlotFlags::default());
            self.complete_hook(&mut shared, token)?;
            return self.refresh(&mut shared);
        }
        let mut table = shared.domain.sppt().ok_or(Errno::NoEntry)?.root();
        let mut place = None;
        for level in [Level::L4, Level::L3, Level::L2] {
            let index = level.index(gfn);
            place = Some((table, index));
            let entry = SpptEntry::from(shared.domain.frames().load(table, index));
            table = entry.table().ok_or(Errno::NoEntry)?;
        }
        let (table, index, change) = match (operation, place) {
            (0, Some((table, index))) => (table, index, 1),
            (1, _) => (table, Level::L1.index(gfn), 1 << 1),
            _ => return Err(Errno::Invalid),
        };
        shared.hooks.broken.try_reserve(1).map_err(|_| Errno::NoMemory)?;
        let old = shared.domain.frames().load(table, index);
        shared.hooks.broken.push((gfn, table, index, old));
        shared.domain.frames_mut().store(table, index, old ^ change);
        self.refresh(&mut shared)
    }

    fn inject_hook(&mut self, vector: u64, kind: u64, length: u64) -> Answer {
        let vector = u8::try_from(vector).map_err(|_| Errno::Invalid)?;
        let kind = u8::try_from(kind).ok().filter(|kind| matches!(kind, 0 | 2 | 3 | 4));
        let kind = kind.ok_or(Errno::Invalid)?;
        if kind == 0 && self.vmcs.guest(G::RFLAGS) & RFLAGS_IF == 0 {
            return Err(Errno::Invalid);
        }
        let event = VectoringInfo::new().with_vector(vector).with_kind(kind);
        self.inject_raw(event, 0, length);
        Ok(0)
    }

    fn counter(&self, item: u64) -> Answer {
        let machine = self.machine;
        if let Ok(reason) = u8::try_from(item) {
            return Ok(machine.exits.of(ExitReason(reason.into())));
        }
        if item == 0x300 {
            return Ok(machine.exits.all());
        }
        let shared = machine.lock();
        let counters = shared.domain.counters();
        Ok(match item {
            0x100 => counters.sets,
            0x101 => counters.ept_violations,
            0x102 => counters.spp_misses,
            0x103 => counters.spp_misconfigurations,
            0x104 => counters.denied,
            0x105 => counters.reported,
            0x106 => counters.retries,
            0x107 => counters.emulations,
            0x108 => counters.dirtied,
            0x109 => counters.tracked,
            0x200 => shared.domain.retired_frames() as u64,
            0x201 => shared.domain.frames().in_use(),
            0x202 => shared.domain.rules().len() as u64,
            _ => return Err(Errno::Invalid),
        })
    }

    fn slot(&mut self, operation: u64, id: u64, first: u64, rest: u64) -> Answer {
        let number = usize::try_from(id).ok().filter(|number| (1..SLOTS).contains(number));
        let number = number.ok_or(Errno::Invalid)?;
        let id = SlotId(u16::try_from(number).map_err(|_| Errno::Invalid)?);
        let machine = self.machine;
        let mut shared = machine.lock();
        match operation {
            0 => Self::add_slot(&mut shared, number, id, first, rest),
            1 => {
                let token = shared.domain.remove_slot(SPACE, id).map_err(slot_error)?;
                let result = self.complete_hook(&mut shared, Ok(token));
                shared.hooks.slots[number] = None;
                result
            }
            2 => {
                let first = Gfn::try_new(first).map_err(|_| Errno::Invalid)?;
                let token = shared.domain.move_slot(SPACE, id, first).map_err(slot_error)?;
                self.complete_hook(&mut shared, Ok(token))?;
                if let Some(slot) = &mut shared.hooks.slots[number] {
                    slot.first = first;
                }
                Self::map_slot(&mut shared, number)
            }
            3 => {
                let flags = SlotFlags { read_only: rest & 1 != 0, log_dirty: rest & 2 != 0 };
                let token = shared.domain.set_slot_flags(SPACE, id, flags).map_err(slot_error)?;
                self.complete_hook(&mut shared, Ok(token))
            }
            4 => {
                let harvest = shared.domain.harvest_dirty(SPACE, id).map_err(slot_error)?;
                let (pending, token) = harvest;
                let done = machine.invalidate(self.index, token);
                shared.domain.finish(&done);
                let Ok(bitmap) = pending.ready(&done) else { return Err(Errno::Busy) };
                let first = bitmap.pages().first().as_u64();
                let numbers = bitmap.iter().map(|gfn| gfn.as_u64() - first);
                Ok(numbers.filter(|&number| number < 63).fold(0, |bits, number| bits | 1 << number))
            }
            _ => Err(Errno::Invalid),
        }
    }

    fn add_slot(shared: &mut Shared, number: usize, id: SlotId, first: u64, pages: u64) -> Answer {
        if !(1..=SLOT_PAGES).contains(&pages) {
            return Err(Errno::Invalid);
        }
        let first = Gfn::try_new(first).map_err(|_| Errno::Invalid)?;
        let range = GfnRange::new(first, pages).map_err(|_| Errno::Invalid)?;
        let count = usize::try_from(pages).map_err(|_| Errno::Invalid)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(count).map_err(|_| Errno::NoMemory)?;
        memory.resize(count, Page([0; 4096]));
        shared.domain.add_slot(SPACE, id, range, SlotFlags::default()).map_err(slot_error)?;
        shared.hooks.slots[number] = Some(ExtraSlot { first, memory });
        Self::map_slot(shared, number)
    }

    fn map_slot(shared: &mut Shared, number: usize) -> Answer {
        let Some(slot) = &shared.hooks.slots[number] else { return Err(Errno::NoEntry) };
        let first = slot.first.as_u64();
        let pages: Vec<u64> =
            slot.memory.iter().map(|page| core::ptr::from_ref(page) as u64).collect();
        for (gfn, hpa) in (first..).zip(pages) {
            let page = HostPage {
                hpa: Hpa::new(hpa),
                size: PageSize::Size4K,
                writable: true,
                executable: true,
                memory_type: MemoryType::WriteBack,
            };
            shared.domain.map(SPACE, Gfn::new(gfn), page)?;
        }
        Ok(0)
    }

    fn protect(&mut self, first: u64, pages: u64, writable: u64) -> Answer {
        let first = Gfn::try_new(first).map_err(|_| Errno::Invalid)?;
        let range = GfnRange::new(first, pages).map_err(|_| Errno::Invalid)?;
        let machine = self.machine;
        let mut shared = machine.lock();
        let token = shared.domain.protect(SPACE, range, writable != 0);
        self.complete_hook(&mut shared, token)
    }

    fn leaf(&self, gpa: u64) -> Answer {
        let gfn = Gpa::try_new(gpa).map_err(|_| Errno::Invalid)?.gfn();
        let shared = self.machine.lock();
        let place = shared.domain.mapping(SPACE, gfn);
        Ok(place.and_then(|place| place.leaf_size()).map_or(0, PageSize::bytes))
    }

    fn host_rule(&mut self, address: u64) -> Answer {
        let machine = self.machine;
        let mut bytes = [0; size_of::<RuleRequest>()];
        let gpa = Gpa::try_new(address).map_err(|_| Errno::Fault)?;
        machine.ram.read(gpa, &mut bytes).map_err(|_| Errno::Fault)?;
        let request = RuleRequest::read_from_bytes(&bytes).map_err(|_| Errno::Fault)?;
        let (mut rule, response) = rule_of(&request)?;
        rule.owner = Owner::HOST;
        let mut shared = machine.lock();
        shared.ledger.responses.reserve_one()?;
        let (id, token) = shared.domain.add_rule(rule)?;
        shared.ledger.responses.set(id, response);
        self.complete_hook(&mut shared, Ok(token))?;
        Ok(id.0)
    }
}

fn slot_error(error: DomainError) -> Errno {
    use subpage::slots::SlotError;
    match error {
        DomainError::Slot(SlotError::Exists(_) | SlotError::Overlaps(_)) => Errno::Exists,
        DomainError::Slot(SlotError::Missing(_)) => Errno::NoEntry,
        other => other.into(),
    }
}
