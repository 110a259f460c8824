//! Addresses of a kernel as it was linked, and as it runs.

use core::fmt;

/// Where x86-64 Linux maps physical address 0 for the kernel's own image: `__START_KERNEL_map`.
///
/// Linux, Documentation/arch/x86/x86_64/mm.rst, "kernel text mapping, mapped to physical address 0".
pub const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// A linear address as the kernel's linker gave it: before KASLR has moved the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress(u64);

/// A linear address in the running kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuntimeAddress(u64);

/// How far KASLR has moved the kernel's linear addresses, in bytes; zero with `nokaslr`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slide(u64);

impl LinkAddress {
    /// Any 64 bits.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on; `None` beyond 2^64.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// Bytes from `earlier` to this address; `None` if that lies behind it.
    pub const fn checked_since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Where it is in a kernel that was moved; `None` beyond 2^64.
    pub const fn at_run_time(self, slide: Slide) -> Option<RuntimeAddress> {
        match self.0.checked_add(slide.0) {
            Some(address) => Some(RuntimeAddress(address)),
            None => None,
        }
    }

    /// The physical address of this byte of the kernel's image where the kernel lies for which it was
    /// linked: its distance from [`START_KERNEL_MAP`]. `None` below that.
    pub const fn physical(self) -> Option<u64> {
        self.0.checked_sub(START_KERNEL_MAP)
    }
}

impl RuntimeAddress {
    /// Any 64 bits.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on; `None` beyond 2^64.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }

    /// What the linker gave it; `None` if the slide is greater.
    pub const fn linked(self, slide: Slide) -> Option<LinkAddress> {
        match self.0.checked_sub(slide.0) {
            Some(address) => Some(LinkAddress(address)),
            None => None,
        }
    }
}

impl Slide {
    /// A kernel where it was linked.
    pub const ZERO: Self = Self(0);

    /// A kernel that was moved up by so many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The slide by which a byte moved; `None` if it lies below where it was linked.
    pub const fn between(linked: LinkAddress, running: RuntimeAddress) -> Option<Self> {
        match running.0.checked_sub(linked.0) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkAddress({:#x})", self.0)
    }
}

impl fmt::Debug for RuntimeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RuntimeAddress({:#x})", self.0)
    }
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for RuntimeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
