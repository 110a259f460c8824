//! The same from an image's types, with names as text.

use super::places::{Current, NAME_BYTES, TaskPlaces};
use crate::address::{START_KERNEL_MAP, Slide};
use crate::btf::{Btf, Field};
use crate::kallsyms::Kallsyms;
use crate::memory::Memory;

/// A task of a running kernel, as the kernel's memory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Number of its process (`tgid`).
    pub pid: u32,
    /// Its own number (`pid`).
    pub tid: u32,
    /// Its name (`comm`), at most 15 bytes; what is not UTF-8 is replaced.
    pub name: String,
    /// The user whose rights it has (`cred->uid`), as the kernel counts users.
    pub uid: Option<u32>,
}

/// What a kernel's types say about tasks.
#[derive(Debug)]
pub struct Tasks {
    places: TaskPlaces,
}

impl Tasks {
    /// From an image's symbols and types; `None` if one of them is missing or has another form.
    pub fn of(kallsyms: &Kallsyms, btf: &Btf) -> Option<Self> {
        let field = |path: &[&str], length: u64| {
            btf.field("task_struct", path).filter(|it| it.length == length).map(|it| it.offset)
        };
        let of_user = |Field { offset, length }: Field| (length == 4).then_some(offset);
        let user = btf.field("cred", &["uid"]).and_then(of_user);
        let places = TaskPlaces {
            current: Current::of(kallsyms, btf)?,
            pid: field(&["pid"], 4)?,
            tgid: field(&["tgid"], 4)?,
            name: field(&["comm"], NAME_BYTES as u64)?,
            leader: field(&["group_leader"], 8)?,
            uid: field(&["cred"], 8).zip(user),
        };
        Some(Self { places })
    }

    /// The offsets, for those who have no image.
    pub const fn places(&self) -> &TaskPlaces {
        &self.places
    }

    /// As [`TaskPlaces::current`].
    pub fn current(&self, memory: &dyn Memory, gs_base: u64, slide: Slide) -> Option<Task> {
        let found = self.places.current(memory, gs_base, slide)?;
        let name = String::from_utf8_lossy(found.name.as_bytes()).into_owned();
        Some(Task { pid: found.pid, tid: found.tid, name, uid: found.uid })
    }
}

impl Current {
    fn of(kallsyms: &Kallsyms, btf: &Btf) -> Option<Self> {
        let (base, inside) = if let Some(symbol) = kallsyms.find("current_task") {
            (symbol.address.as_u64(), 0)
        } else {
            // From 6.2 to 6.14 it lies with other data that is used often.
            let field = btf.field("pcpu_hot", &["current_task"]).filter(|it| it.length == 8)?;
            (kallsyms.find("pcpu_hot")?.address.as_u64(), field.offset)
        };
        let place = base.checked_add(inside)?;
        Some(if base < START_KERNEL_MAP { Self::PerProcessor(place) } else { Self::Linked(place) })
    }
}
