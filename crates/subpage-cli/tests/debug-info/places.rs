// The same in Rust.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

pub struct Entry {
    pub flags: AtomicU32,
    pub pair: (AtomicU32, [AtomicU32; 3]),
}

const NONE: AtomicU32 = AtomicU32::new(0);

pub static TABLE: [Entry; 4] =
    [const { Entry { flags: NONE, pair: (NONE, [NONE; 3]) } }; 4];

#[unsafe(no_mangle)]
pub static PLAIN: Entry = Entry { flags: NONE, pair: (NONE, [NONE; 3]) };

#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    TABLE[2].pair.1[1].store(1, Ordering::Relaxed);
    PLAIN.flags.store(1, Ordering::Relaxed);
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
