//! The guest's memory as the guard asks for it.

use subpage::address::{ByteRange, GfnRange};
use subpage::domain::WriteParts;
use subpage_emulate::Window;
use subpage_guard::memory::{GuestMemory, NoWindow, ViewError};

use super::{Ram, Remedy};

impl GuestMemory for Ram {
    fn runs(&self) -> impl Iterator<Item = GfnRange> {
        self.mapped().iter().map(|region| region.pages)
    }

    fn holds(&self, range: ByteRange) -> bool {
        Self::holds(self, range)
    }

    fn set_writable(&self, pages: GfnRange, writable: bool) -> Result<(), ViewError> {
        self.view().set_writable(pages, writable)
    }

    fn with_window<T>(
        &self,
        write: &WriteParts,
        work: impl FnOnce(&mut Window<'_>) -> T,
    ) -> Result<T, NoWindow> {
        Self::with_window(self, write, work)
    }

    fn remedy(&self, range: ByteRange) -> String {
        Remedy::of(range).to_string()
    }
}
