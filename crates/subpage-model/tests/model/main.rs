//! The model against the facts: the measured behaviour of Bochs, and the rules of the SDM that
//! Bochs does not show.

mod bochs;
mod flags;
mod guest;
mod policies;
mod staleness;
mod sub_pages;
mod violations;
mod walks;
