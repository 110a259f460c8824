//! What a processor reports when a write leaves the guest: reasons, qualifications, event delivery.
//!
//! Definitions only; what the engine does about an exit is in [`crate::domain`].

mod delivery;
mod qualification;
mod reason;

pub use delivery::{Delivery, DeliveryFixup, VectoringInfo};
pub use qualification::{EptQualification, SppQualification};
pub use reason::ExitReason;
