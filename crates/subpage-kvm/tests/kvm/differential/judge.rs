//! What is to come of a stream: over denied pages, by the events, and where this KVM has its own mind.

use std::fmt::Write as _;
use std::sync::Arc;

use kvm_bindings::kvm_regs;
use subpage_emulate::guest::State;
use subpage_emulate::{GuestInstruction, Store};
use subpage_trap::{Record, Verdict};

use super::generate::{is_enter, is_wide};
use super::machine::{After, CODE, FIRST, PAGES, Page, Start, Subject, page};

/// What a judge says of a stream.
#[derive(Clone)]
pub(super) struct Judged {
    pub(super) after: After,
    /// A store goes to a page that is denied and to one that does not trap.
    pub(super) halves: bool,
}

/// The judge cannot do what it was asked for.
pub(super) struct Undecided;

/// One instruction after the other, of which those that store to denied pages have changed no memory.
pub(super) fn over_rom(
    judge: &Subject,
    pages: &[Page],
    start: &Start,
    stream: &[Vec<u8>],
) -> Result<Judged, Undecided> {
    let mut halves = false;
    let mut registers = start.registers.clone();
    let mut code: Vec<u8> = Vec::new();
    let mut last = None;
    for bytes in stream {
        let before = judge.memory();
        registers.general.rip = CODE + code.len() as u64;
        // What comes before lies there as it does in the whole stream.
        let (after, all) = judge.run(bytes, &registers).map_err(|_| Undecided)?;
        let goes = |to: Page| {
            move |linear: u64| {
                let number = linear.wrapping_sub(FIRST) >> 12;
                usize::try_from(number).is_ok_and(|number| pages.get(number) == Some(&to))
            }
        };
        let denied = goes(Page::Denied);
        let stores = stores(bytes, &registers.general);
        let changed = |number: usize| {
            let page = number * 0x1000..(number + 1) * 0x1000;
            pages[number] == Page::Denied && before[page.clone()] != judge.memory()[page]
        };
        let touches = stores.iter().any(|&(at, length)| (at..at + length).any(denied))
            || (0..pages.len()).any(changed);
        halves |= stores.iter().any(|&(at, length)| {
            (at..at + length).any(denied) && (at..at + length).any(goes(Page::Plain))
        });
        let all = if touches {
            judge.set_memory(&before);
            all.with_memory(&before)
        } else {
            all
        };
        code.extend(bytes);
        let ended = !(CODE..CODE + 0x1000).contains(&after.general.rip);
        registers = after;
        last = Some(all);
        if ended {
            break;
        }
    }
    let after = last.ok_or(Undecided)?;
    Ok(Judged { after, halves })
}

/// Whether #UD came of an FXSAVE to an address that is no multiple of 16, or with a stack pointer that
/// is not canonical.
pub(super) fn refuses_oddly(after: &After, stream: &[Vec<u8>]) -> bool {
    let Some((vector, general)) = after.ended() else { return false };
    let canonical = (general.rsp.cast_signed() << 16 >> 16).cast_unsigned() == general.rsp;
    let wide = instruction_at(stream, general.rip).filter(|bytes| is_wide(bytes));
    let unaligned = wide.is_some_and(|bytes| {
        stores(bytes, &general).iter().any(|(at, length)| at % 16 != 0 && *length == 512)
    });
    vector == 6 && (unaligned || !canonical)
}

/// Whether ENTER has ended in a page fault: the processor has made the pushes before it.
pub(super) fn enters_in_part(after: &After, stream: &[Vec<u8>]) -> bool {
    after.ended().is_some_and(|(vector, general)| {
        vector == 14 && instruction_at(stream, general.rip).is_some_and(is_enter)
    })
}

fn instruction_at(stream: &[Vec<u8>], rip: u64) -> Option<&[u8]> {
    let mut at = CODE;
    let found = stream.iter().find(|bytes| {
        let here = at;
        at += bytes.len() as u64;
        here == rip
    });
    found.map(Vec::as_slice)
}

/// Whether an instruction is a near call with an operand-size prefix, whose meaning is the vendor's.
pub(super) fn is_short_call(bytes: &[u8]) -> bool {
    bytes.contains(&0x66) && bytes.contains(&0xe8)
}

/// Where an instruction stores, by its operands.
fn stores(bytes: &[u8], general: &kvm_regs) -> Vec<(u64, u64)> {
    let state = State { rip: general.rip, ..state_of(general) };
    let Some(instruction) = GuestInstruction::decode(&state, bytes) else { return Vec::new() };
    if let Ok(store) = Store::of(&instruction, &state) {
        return vec![(store.linear(), store.length() as u64)];
    }
    let accesses = instruction.accesses(&state).into_iter();
    accesses.filter(|(_, _, write)| *write).map(|(at, length, _)| (at, length)).collect()
}

/// A state of flat 64-bit code.
fn state_of(general: &kvm_regs) -> State {
    let r = general;
    let mut state = State { cr0: 0x8000_0001, efer: 0x500, ..State::default() };
    state.segments.cs.access = 1 << 13;
    state.registers.0 = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ];
    state
}

/// The difference between pages of which every write is reported, and what events tell of them.
pub(super) fn differs_from_events(
    pages: &[Page],
    start: &Start,
    got: &After,
    events: &[Arc<Record>],
) -> Option<String> {
    let mut text = String::new();
    let mut told = start.memory.clone();
    for Record { event, .. } in events.iter().map(AsRef::as_ref) {
        if event.verdict == Verdict::Denied {
            continue;
        }
        let (at, length) = (event.gpa.as_u64(), event.bytes.len());
        let gfn = event.gpa.gfn().gpa().as_u64();
        let Some(number) = (0..PAGES).find(|&number| page(number) == gfn) else {
            let _ = writeln!(text, "  an event tells of a write to {at:#x}, which is in no page");
            continue;
        };
        let first =
            usize::try_from(number * 0x1000 + u64::from(event.gpa.page_offset())).expect("small");
        match told.get_mut(first..first + length) {
            Some(bytes) => bytes.copy_from_slice(&event.bytes),
            // What goes into the hole behind the last page has faulted, and has not happened.
            None if got.ended().is_some() => {}
            None => {
                let _ = writeln!(
                    text,
                    "  an event tells of {length} bytes at {at:#x}, which go beyond the last page"
                );
            }
        }
    }
    for (number, _) in (0..).zip(pages).filter(|(_, kind)| **kind == Page::Reported) {
        let told = &told[number * 0x1000..][..0x1000];
        let is = got.page(page(number as u64));
        for (at, (told, is)) in told.iter().zip(is).enumerate() {
            if told != is && text.len() < 300 {
                let _ = writeln!(
                    text,
                    "  by the events, byte {at:#x} of page {number} is {told:#x}, not {is:#x}"
                );
            }
        }
    }
    (!text.is_empty()).then_some(text)
}
