//! Output: port 0E9H, whose bytes the hypervisor passes on.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::processor::port;

/// Port whose bytes come out as text.
const PORT: u16 = 0xe9;

/// Keeps lines of several processors apart.
static BUSY: AtomicBool = AtomicBool::new(false);

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            port::write(PORT, byte);
        }
        Ok(())
    }
}

/// Text on one line: ends of lines become blanks, since every line of output has its meaning.
struct OneLine;

impl Write for OneLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            port::write(PORT, if byte == b'\n' { b' ' } else { byte });
        }
        Ok(())
    }
}

/// Prints `text` as one line.
///
/// Waits for another processor's line to end, but not forever: the processor may have failed in
/// the middle of it.
pub fn line(text: fmt::Arguments<'_>) {
    let mut patience = 1_000_000;
    while BUSY.swap(true, Ordering::Acquire) && patience > 0 {
        patience -= 1;
        core::hint::spin_loop();
    }
    // Neither writer ever fails, and nobody could be told.
    let _ = OneLine.write_fmt(text).and_then(|()| Port.write_str("\n"));
    BUSY.store(false, Ordering::Release);
}

/// Prints one line, as `println!`.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}
