//! A Linux kernel as the machine's one guest: its place, what it is told, and how it starts.
//!
//! The boot loader brings a bzImage (module `linux`) and, if wanted, an initrd. Guest-physical addresses
//! are the machine's. The kernel's own loader runs as a part of the guest; the policy comes into force
//! when the unpacked kernel is entered, since before that its bytes are written.

mod costs;
mod first_memory;
mod places;
mod start;

pub use costs::Costs;
pub use places::{PlaceError, Places, Wanted, place};
pub use start::{Linux, LinuxError, Plan, load, plan};
