//! The executor's side of the conformance comparison: what a batch of cases looks like, what is
//! done with it, and what is answered.
//!
//! A case is nothing but words of memory and three pointers: EPT, SPPT and guest paging structures,
//! code and data are all stored by the case itself into the [`ARENA`](format::ARENA), a region of
//! host-physical memory at a fixed address. So the maker of the cases knows every byte that the
//! processor sees, and the executor decides nothing: it stores, enters the guest once, and answers
//! with the exit and with every word of the arena that the run changed.

pub mod answer;
pub mod execute;
pub mod format;
pub mod processor;
pub mod start;
