//! Physical memory: the hypervisor's heap and table frames, the guest's pages, windows onto them.

pub mod frames;
mod heap;
pub mod ram;
pub mod reach;
pub mod window;

pub use heap::Heap;
