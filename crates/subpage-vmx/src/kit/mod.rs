//! The hardware kit: runs conformance cases on the machine that it was started on, compares each step
//! with what the model has predicted, and reports.
//!
//! The maker of a kit predicts: it knows the whole model, and puts into the kit only cases whose
//! outcome depends on nothing in which processors with sub-page permissions may differ. So the kit needs
//! neither the model nor an operating system, and its report is a few lines on the serial port, each of
//! which begins with [`MARK`], and on a screen for text, without the mark.

pub mod identity;
pub mod judge;
pub mod predicted;
pub mod report;
pub mod screen;
pub mod start;
pub mod timing;

/// Begins every line of a report.
pub const MARK: &str = "kit: ";

/// Narrowest physical addresses that the cases fit, in bits: their windows begin at 512 GiB.
pub const LEAST_WIDTH: u32 = 40;
