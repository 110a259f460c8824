//! Where the fields of a kernel's structures lie, from the types that its image brings (BTF).
//!
//! The format is that of Linux, Documentation/bpf/btf.rst.

use crate::image::KernelImage;
use crate::kallsyms::Kallsyms;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;

/// Length of the header of version 1 in bytes.
const HEADER_BYTES: usize = 24;

/// Most types that are read; a distribution's kernel has about 150,000.
const MAX_TYPES: usize = 4_000_000;

/// Structures inside of structures without a name, at most.
const MAX_DEPTH: u32 = 16;

/// Members that are looked at for one path, at most.
const MAX_MEMBERS: u32 = 100_000;

/// Typedefs and qualifiers in a row, at most.
const MAX_NAMES: u32 = 32;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Where a field lies in its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the structure's beginning.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type is in `types`, from number 1 on.
    starts: Vec<u32>,
    /// Numbers of the structures and unions.
    structures: Vec<u32>,
}

/// One type.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: usize,
    /// Offsets of members are of bit fields, too.
    kind_flag: bool,
    /// Size in bytes, or number of another type.
    last: u32,
    /// Behind its three words.
    rest: usize,
}

impl Btf {
    /// The types in an image: its section `.BTF`, or what lies between `__start_BTF` and `__stop_BTF`.
    /// `None` if there are none, or if they are damaged or of another version.
    pub fn read(image: &KernelImage, kallsyms: &Kallsyms) -> Option<Self> {
        let start = kallsyms.find("__start_BTF").map(|symbol| symbol.address);
        let stop = kallsyms.find("__stop_BTF").map(|symbol| symbol.address);
        let section = image.section(".BTF").filter(|section| section.address.as_u64() != 0);
        let by_section = section.map(|section| (section.address, section.length));
        let between = || Some((start?, stop?.checked_since(start?)?));
        let (address, length) = by_section.or_else(between)?;
        Self::parse(image.bytes_at(address, usize::try_from(length).ok()?)?)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at| word(bytes, at).map(|number| number as usize);
        let header = number(4)?;
        if half(bytes, 0)? != MAGIC || bytes.get(2) != Some(&VERSION) || header < HEADER_BYTES {
            return None;
        }
        let part = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let types = part(number(8)?, number(12)?)?.to_vec();
        let strings = part(number(16)?, number(20)?)?.to_vec();
        let mut btf = Self { types, strings, starts: Vec::new(), structures: Vec::new() };
        let mut at = 0;
        while at < btf.types.len() {
            if btf.starts.len() == MAX_TYPES {
                return None;
            }
            let found = Type::at(&btf.types, at)?;
            btf.starts.push(u32::try_from(at).ok()?);
            if matches!(found.kind, kind::STRUCT | kind::UNION) {
                btf.structures.push(u32::try_from(btf.starts.len()).ok()?);
            }
            at = found.end()?;
        }
        Some(btf)
    }

    /// Where the field at the end of a path lies: `["real_cred"]` of `task_struct`, or
    /// `["thread_info", "cpu"]`. The fields of structures without a name are those of the structure
    /// around. `None` if there is no such field, if it is a bit field, or if structures of this name do
    /// not agree about it.
    pub fn field(&self, structure: &str, path: &[&str]) -> Option<Field> {
        let mut found = None;
        for number in self.named(structure) {
            let here = self.walk(number, path)?;
            if found.is_some_and(|found| found != here) {
                return None;
            }
            found = Some(here);
        }
        found
    }

    /// How long a structure is, in bytes; `None` if structures of this name do not agree.
    pub fn size(&self, structure: &str) -> Option<u64> {
        let mut sizes = self.named(structure).map(|number| Some(self.get(number)?.last));
        let first = sizes.next()??;
        sizes.all(|size| size == Some(first)).then_some(first.into())
    }

    /// The numbers of the structures of a name.
    fn named(&self, name: &str) -> impl Iterator<Item = u32> {
        let numbers = self.structures.iter().copied();
        numbers.filter(move |number| self.get(*number).is_some_and(|of| self.is(of.name, name)))
    }

    fn walk(&self, structure: u32, path: &[&str]) -> Option<Field> {
        let mut left = MAX_MEMBERS;
        let (mut number, mut offset) = (structure, 0_u64);
        for name in path {
            let (bits, member) = self.member(self.plain(number)?, name, 0, &mut left)?;
            if bits % 8 != 0 {
                return None;
            }
            (number, offset) = (member, offset.checked_add(bits / 8)?);
        }
        Some(Field { offset, length: self.length(number)? })
    }

    /// The bit at which a member begins, and its type.
    fn member(
        &self,
        structure: u32,
        wanted: &str,
        depth: u32,
        left: &mut u32,
    ) -> Option<(u64, u32)> {
        let of = self.get(structure)?;
        if !matches!(of.kind, kind::STRUCT | kind::UNION) || depth == MAX_DEPTH {
            return None;
        }
        for index in 0..of.members {
            *left = left.checked_sub(1)?;
            let at = of.rest + 12 * index;
            let name = word(&self.types, at)?;
            let (kind, offset) = (word(&self.types, at + 4)?, word(&self.types, at + 8)?);
            let (bits, width) =
                if of.kind_flag { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            if self.is(name, wanted) {
                return (width == 0).then_some((bits.into(), kind));
            }
            if self.is(name, "")
                && let Some(inner) = self.plain(kind)
                && let Some((inside, kind)) = self.member(inner, wanted, depth + 1, left)
            {
                return Some((u64::from(bits) + inside, kind));
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn plain(&self, mut number: u32) -> Option<u32> {
        for _ in 0..MAX_NAMES {
            let of = self.get(number)?;
            match of.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    number = of.last;
                }
                _ => return Some(number),
            }
        }
        None
    }

    /// Length of a type in bytes.
    fn length(&self, number: u32) -> Option<u64> {
        let mut number = self.plain(number)?;
        let mut times = 1_u64;
        for _ in 0..MAX_DEPTH {
            let of = self.get(number)?;
            match of.kind {
                kind::PTR => return times.checked_mul(8),
                kind::INT
                | kind::STRUCT
                | kind::UNION
                | kind::ENUM
                | kind::ENUM64
                | kind::FLOAT => return times.checked_mul(of.last.into()),
                kind::ARRAY => {
                    times = times.checked_mul(word(&self.types, of.rest + 8)?.into())?;
                    number = self.plain(word(&self.types, of.rest)?)?;
                }
                _ => return None,
            }
        }
        None
    }

    fn get(&self, number: u32) -> Option<Type> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        Type::at(&self.types, usize::try_from(*self.starts.get(index)?).ok()?)
    }

    /// Whether a text at this place of the strings is `wanted`.
    fn is(&self, at: u32, wanted: &str) -> bool {
        let rest = usize::try_from(at).ok().and_then(|at| self.strings.get(at..));
        let behind = rest.and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        behind.is_some_and(|behind| behind.first() == Some(&0))
    }
}

impl Type {
    fn at(types: &[u8], at: usize) -> Option<Self> {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        Some(Self {
            name,
            kind: info >> 24 & 0x1f,
            members: usize::from(u16::try_from(info & 0xffff).ok()?),
            kind_flag: info >> 31 != 0,
            last: word(types, at + 8)?,
            rest: at + 12,
        })
    }

    /// Where the next type is; `None` if this one's kind is not known.
    fn end(&self) -> Option<usize> {
        let more = match self.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.members,
            kind::ENUM | kind::FUNC_PROTO => 8 * self.members,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        };
        self.rest.checked_add(more)
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_le_bytes(*half))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Types written one by one, with their names.
    #[derive(Default)]
    struct Made {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Made {
        fn name(&mut self, name: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len();
            self.strings.extend(name.bytes().chain([0]));
            u32::try_from(at).expect("short")
        }

        fn add(&mut self, name: &str, kind: u32, members: u32, last: u32, rest: &[u32]) {
            let name = self.name(name);
            for number in [name, kind << 24 | members, last].into_iter().chain(rest.iter().copied())
            {
                self.types.extend(number.to_le_bytes());
            }
        }

        fn structure(&mut self, name: &str, kind: u32, size: u32, fields: &[(&str, u32, u32)]) {
            let rest: Vec<_> = fields
                .iter()
                .flat_map(|(name, kind, bits)| [self.name(name), *kind, *bits])
                .collect();
            self.add(name, kind, u32::try_from(fields.len()).expect("few"), size, &rest);
        }

        fn bytes(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            bytes.extend(MAGIC.to_le_bytes());
            bytes.extend([VERSION, 0]);
            let (types, strings) = (self.types.len(), self.strings.len());
            for number in [HEADER_BYTES, 0, types, types, strings] {
                bytes.extend(u32::try_from(number).expect("short").to_le_bytes());
            }
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }
    }

    /// 1 int, 2 its typedef, 3 char[16], 4 pointer, 5 the union without a name, 6 `task_struct`, 7 a
    /// structure in it, of 8 bytes.
    fn made() -> Made {
        let mut made = Made::default();
        made.add("int", kind::INT, 0, 4, &[0x20]);
        made.add("pid_t", kind::TYPEDEF, 0, 1, &[]);
        made.add("", kind::ARRAY, 0, 0, &[1, 1, 4]);
        made.add("", kind::PTR, 0, 6, &[]);
        made.structure("", kind::UNION, 8, &[("cpu", 2, 0), ("wide", 4, 0)]);
        made.structure(
            "task_struct",
            kind::STRUCT,
            64,
            &[("info", 7, 0), ("", 5, 128), ("pid", 2, 192), ("comm", 3, 256), ("parent", 4, 384)],
        );
        made.structure("thread_info", kind::STRUCT, 8, &[("flags", 1, 0), ("status", 1, 32)]);
        made
    }

    #[test]
    fn fields_are_found_by_their_path() {
        let btf = Btf::parse(&made().bytes()).expect("types");
        let field = |path: &[&str]| btf.field("task_struct", path).map(|it| (it.offset, it.length));
        assert_eq!(field(&["pid"]), Some((24, 4)));
        assert_eq!(field(&["comm"]), Some((32, 16)));
        assert_eq!(field(&["parent"]), Some((48, 8)));
        assert_eq!(field(&["info", "status"]), Some((4, 4)));
        assert_eq!(field(&["wide"]), Some((16, 8)), "of a union without a name");
        assert_eq!(field(&["cpu"]), Some((16, 4)));
        for absent in [&["tgid"][..], &["pid", "x"], &["parent", "pid"], &["info", "cpu"]] {
            assert_eq!(field(absent), None, "{absent:?}");
        }
        assert_eq!((btf.size("task_struct"), btf.size("thread_info")), (Some(64), Some(8)));
        assert_eq!((btf.field("cred", &["uid"]), btf.size("cred")), (None, None));
    }

    #[test]
    fn structures_of_one_name_have_to_agree() {
        let mut made = made();
        made.structure("thread_info", kind::STRUCT, 8, &[("flags", 1, 0), ("status", 2, 0)]);
        let btf = Btf::parse(&made.bytes()).expect("types");
        assert_eq!(btf.field("thread_info", &["flags"]), Some(Field { offset: 0, length: 4 }));
        assert_eq!(btf.field("thread_info", &["status"]), None);
    }

    #[test]
    fn bit_fields_are_left_out() {
        let mut made = made();
        let fields = [("low", 1, 3 << 24), ("whole", 1, 32)];
        made.structure("flags", kind::STRUCT, 8, &fields);
        let at = made.types.len() - 24 - 12 + 4;
        made.types[at + 3] |= 0x80;
        let btf = Btf::parse(&made.bytes()).expect("types");
        assert_eq!(btf.field("flags", &["low"]), None);
        assert_eq!(btf.field("flags", &["whole"]), Some(Field { offset: 4, length: 4 }));
    }

    #[test]
    fn types_that_lead_to_themselves_end() {
        let mut made = Made::default();
        made.add("loop", kind::TYPEDEF, 0, 1, &[]);
        made.structure("inside", kind::STRUCT, 8, &[("", 2, 0), ("again", 1, 0), ("a", 3, 0)]);
        made.add("", kind::ARRAY, 0, 0, &[3, 3, 2]);
        let btf = Btf::parse(&made.bytes()).expect("types");
        for name in ["x", "again", "a"] {
            assert_eq!(btf.field("inside", &[name]), None, "{name}");
        }
    }

    #[test]
    fn what_is_damaged_is_absent_and_nothing_breaks() {
        let bytes = made().bytes();
        for length in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..length]).is_none(), "{length} bytes");
        }
        for (at, value) in [(0, 0), (2, 2), (4, 8), (31, 31)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert!(Btf::parse(&wrong).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn changed_bytes_never_break_a_reader(changes in prop::collection::vec((0_usize..400, any::<u8>()), 1..8)) {
            let mut bytes = made().bytes();
            let count = bytes.len();
            for (at, value) in changes {
                bytes[at % count] = value;
            }
            if let Some(btf) = Btf::parse(&bytes) {
                for path in [&["pid"][..], &["cpu"], &["info", "status"], &["comm"]] {
                    let _ = btf.field("task_struct", path);
                }
                let _ = btf.size("thread_info");
            }
        }
    }
}
