//! A piece of memory that no Rust object lies in, accessed by known instructions.
//!
//! Unsafe: this is where tests touch memory, with stores that may be denied, and while other
//! processors do the same. Every `Bytes` comes from [`super::frames`], or from addresses where
//! nothing of this image is, so that no access can meet an object of the program. All accesses are
//! assembly: single instructions of a known size, of which the compiler knows nothing.

use core::arch::asm;

use super::{PAGE, SUB_PAGE, frames};

/// Memory for tests, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    first: u64,
    length: u64,
}

/// A word that one instruction loads or stores.
pub trait Word: Copy {
    /// Loads it.
    ///
    /// # Safety
    /// `address` and the bytes after it are mapped memory.
    unsafe fn load(address: u64) -> Self;

    /// Stores it.
    ///
    /// # Safety
    /// No Rust object lies in the bytes at `address`, which are mapped memory.
    unsafe fn store(self, address: u64);
}

macro_rules! word {
    ($type:ty, $class:ident, $register:literal) => {
        impl Word for $type {
            unsafe fn load(address: u64) -> Self {
                let value: $type;
                // SAFETY: the caller says that the memory is there; nothing else is touched.
                unsafe {
                    asm!(concat!("mov {value", $register, "}, [{address}]"),
                        value = out($class) value, address = in(reg) address,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }

            unsafe fn store(self, address: u64) {
                // SAFETY: the caller says that no object lies there; nothing else is touched.
                unsafe {
                    asm!(concat!("mov [{address}], {value", $register, "}"),
                        value = in($class) self, address = in(reg) address,
                        options(nostack, preserves_flags));
                }
            }
        }
    };
}

word!(u8, reg_byte, "");
word!(u16, reg, ":x");
word!(u32, reg, ":e");
word!(u64, reg, ":r");

impl Bytes {
    /// Memory that [`frames`] hands out.
    pub(super) const fn taken(first: u64, length: u64) -> Self {
        Self { first, length }
    }

    /// Memory below the image, where nothing of this guest is once it runs on its own stack and
    /// page tables.
    ///
    /// # Panics
    /// If it is not below 640 KiB.
    pub fn low(first: u64, length: u64) -> Self {
        assert!(first >= PAGE && first + length <= 0xa_0000, "{first:#x} is no low memory");
        Self { first, length }
    }

    /// Addresses beyond the guest's memory: nothing is there, unless the host adds a slot.
    ///
    /// # Panics
    /// If it is within memory, or beyond what this guest's page tables map.
    pub fn beyond(first: u64, length: u64) -> Self {
        let mapped = first.checked_add(length).is_some_and(|end| end <= 1 << 30);
        assert!(first >= frames::end() && mapped, "{first:#x} is not beyond memory");
        Self { first, length }
    }

    /// Linear and guest-physical address of the first byte.
    pub const fn address(self) -> u64 {
        self.first
    }

    /// How many bytes.
    pub const fn length(self) -> u64 {
        self.length
    }

    /// Guest frame number of the first byte.
    pub const fn gfn(self) -> u64 {
        self.first / PAGE
    }

    /// The `length` bytes from `offset` on.
    ///
    /// # Panics
    /// If they are not within.
    pub fn part(self, offset: u64, length: u64) -> Self {
        assert!(offset <= self.length && length <= self.length - offset, "{offset:#x}+{length:#x}");
        Self { first: self.first + offset, length }
    }

    /// Sub-page `index` of the page at the beginning.
    pub fn sub_page(self, index: u64) -> Self {
        self.part(index * SUB_PAGE, SUB_PAGE)
    }

    /// Page `index`.
    pub fn page(self, index: u64) -> Self {
        self.part(index * PAGE, PAGE)
    }

    /// Loads a word with one instruction.
    ///
    /// # Panics
    /// If it is not within.
    pub fn read<T: Word>(self, offset: u64) -> T {
        let at = self.part(offset, size_of::<T>() as u64);
        // SAFETY: the bytes are within memory for tests, which is mapped.
        unsafe { T::load(at.first) }
    }

    /// Stores a word with one instruction.
    ///
    /// # Panics
    /// If it is not within.
    pub fn write<T: Word>(self, offset: u64, value: T) {
        let at = self.part(offset, size_of::<T>() as u64);
        // SAFETY: the bytes are within memory for tests, where no object lies.
        unsafe { value.store(at.first) }
    }

    /// Adds 1 to the eight bytes at `offset` with `lock inc`.
    ///
    /// # Panics
    /// If they are not within.
    pub fn increment(self, offset: u64) {
        let at = self.part(offset, 8).first;
        // SAFETY: the bytes are within memory for tests, where no object lies.
        unsafe { asm!("lock inc qword ptr [{}]", in(reg) at, options(nostack)) }
    }

    /// Adds `value` to the eight bytes at `offset` with `lock xadd`, and returns what they were.
    ///
    /// # Panics
    /// If they are not within.
    pub fn exchange_add(self, offset: u64, value: u64) -> u64 {
        let at = self.part(offset, 8).first;
        let mut register = value;
        // SAFETY: the bytes are within memory for tests, where no object lies.
        unsafe {
            asm!("lock xadd qword ptr [{}], {}", in(reg) at, inout(reg) register, options(nostack));
        }
        register
    }

    /// Stores `value` in every byte, in ascending order, byte by byte.
    pub fn fill(self, value: u8) {
        for offset in 0..self.length {
            self.write(offset, value);
        }
    }

    /// Gives every byte a value of its own: `seed` and its position mixed.
    pub fn fill_pattern(self, seed: u8) {
        for offset in 0..self.length {
            self.write(offset, seed ^ (offset as u8) ^ (offset >> 7) as u8);
        }
    }

    /// Copies the first `N` bytes out.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn to_array<const N: usize>(self) -> [u8; N] {
        core::array::from_fn(|offset| self.read(offset as u64))
    }

    /// Copies `bytes` in, byte by byte.
    ///
    /// # Panics
    /// If there is no room.
    pub fn write_all(self, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            self.write(offset as u64, *byte);
        }
    }

    /// Whether each byte is the same here and in `other`.
    pub fn equals(self, other: Self) -> bool {
        self.length == other.length
            && (0..self.length).all(|at| self.read::<u8>(at) == other.read::<u8>(at))
    }

    /// A sum of the bytes that tells different contents apart.
    pub fn digest(self) -> u64 {
        (0..self.length).fold(0xcbf2_9ce4_8422_2325, |sum, offset| {
            (sum ^ u64::from(self.read::<u8>(offset))).wrapping_mul(0x100_0000_01b3)
        })
    }
}
