//! Starts the other processors.
//!
//! Unsafe because their first instructions are copied to a page below 1 MiB.

use crate::boot::{AP_TRAMPOLINE, MAX_PROCESSORS, started_processors, trampoline};
use crate::processor::local_apic::{LocalApic, Message};

/// How long to wait between INIT and the start-up IPIs, and for processors that nobody announced:
/// turns of a loop, some milliseconds on any machine.
const PATIENCE: u32 = 2_000_000;

/// With `wanted` processors announced, how much longer to wait for them.
const MORE_PATIENCE: u32 = 50;

/// Sends INIT and two start-up IPIs to all other processors (SDM Vol. 3A, "MP Initialization
/// Protocol") and returns how many processors there are then, at most [`MAX_PROCESSORS`].
///
/// # Safety
/// Once; the page at [`AP_TRAMPOLINE`] is RAM that nobody uses.
pub unsafe fn start_others(apic: LocalApic, wanted: Option<usize>) -> usize {
    if wanted == Some(1) {
        return 1;
    }
    let code = trampoline();
    let page = AP_TRAMPOLINE as usize as *mut u8;
    for (at, &byte) in code.iter().enumerate() {
        // SAFETY: by the contract the page is free; the code is shorter than a page.
        unsafe { page.wrapping_add(at).write_volatile(byte) };
    }
    const PAGE: u8 = (AP_TRAMPOLINE >> 12).to_le_bytes()[0];
    apic.send_to_others(Message::Init);
    wait(PATIENCE / 20, None);
    for _ in 0..2 {
        apic.send_to_others(Message::StartUp(PAGE));
        wait(PATIENCE / 20, wanted);
    }
    wait(PATIENCE, wanted);
    if wanted.is_some() {
        for _ in 0..MORE_PATIENCE {
            wait(PATIENCE, wanted);
        }
    }
    (started_processors() as usize).min(MAX_PROCESSORS)
}

fn wait(turns: u32, wanted: Option<usize>) {
    for _ in 0..turns {
        if wanted.is_some_and(|wanted| started_processors() as usize >= wanted) {
            return;
        }
        core::hint::spin_loop();
    }
}
