//! Whether a guest still runs the kernel of an image.

use crate::address::{LinkAddress, Slide};
use crate::image::KernelImage;
use crate::kallsyms::Kallsyms;
use crate::memory::Memory;

/// The first line of a kernel, and where it lies. A guest may have started another kernel since (kexec),
/// whose code has other names: then another line is there, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Banner {
    at: LinkAddress,
    text: Vec<u8>,
}

impl Banner {
    /// Of an image: where its symbol `linux_banner` is, which no kernel frees; without the symbol, where
    /// the line stands first.
    pub fn of(image: &KernelImage, kallsyms: &Kallsyms) -> Self {
        let text = image.banner().as_bytes();
        let is_there = |at: &LinkAddress| image.bytes_at(*at, text.len()) == Some(text);
        let symbol = kallsyms.find("linux_banner").map(|symbol| symbol.address).filter(is_there);
        Self { at: symbol.unwrap_or(image.banner_address()), text: text.to_vec() }
    }

    /// Whether a kernel that was moved by `slide` has it in its memory.
    pub fn is_in(&self, memory: &dyn Memory, slide: Slide) -> bool {
        let Some(at) = self.at.at_run_time(slide) else { return false };
        let mut found = vec![0; self.text.len()];
        memory.read(at, &mut found) && found == self.text
    }

    /// Where the image lies in physical memory if it was not moved there, and what has to stand there.
    pub fn physical(&self, image: &KernelImage) -> Option<(u64, &[u8])> {
        Some((image.physical(self.at)?, &self.text))
    }
}
