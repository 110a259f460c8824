//! What a trace says about the storing instructions: their functions and source lines.

use std::collections::HashMap;

use crate::code_names::CodeNames;
use crate::names::MAX_NAME_BYTES;
use crate::varint;
use crate::write::ADDRESS_LIMIT;

/// The most instructions of a trace whose function or line is kept.
pub const MAX_INSTRUCTIONS: usize = 65_536;
/// The most texts of a trace: names of functions, and paths of files.
pub const MAX_TEXTS: usize = 65_536;

/// Functions and source lines of the storing instructions of a recorded program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    texts: Vec<String>,
    /// Ascending by address.
    instructions: Vec<Instruction>,
}

/// A storing instruction. Texts are places among those of its [`Code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    address: u64,
    /// Name, and how many bytes behind the function's first one.
    function: Option<(u32, u64)>,
    /// Path, and number of the line, from 1.
    line: Option<(u32, u32)>,
}

/// What is known of a storing instruction. Texts are not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlace<'a> {
    /// Its function, and how many bytes behind its first one.
    pub function: Option<(&'a str, u64)>,
    /// Path of the source file, and number of the line, from 1.
    pub line: Option<(&'a str, u32)>,
}

impl Code {
    /// The instructions of a program with these addresses, which lies `bias` bytes higher than its file
    /// says. What has neither function nor line is left out, and so is what no longer fits.
    pub fn new(names: &CodeNames, bias: u64, addresses: impl IntoIterator<Item = u64>) -> Self {
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut code = Self::default();
        let mut known = HashMap::new();
        for address in addresses {
            if code.instructions.len() == MAX_INSTRUCTIONS || address >= ADDRESS_LIMIT {
                break;
            }
            let in_file = address.wrapping_sub(bias);
            let function = names.function(in_file);
            let line = names.lines.find(in_file);
            let mut place = |text| code.place(&mut known, text);
            let function = function.and_then(|(name, offset)| Some((place(name)?, offset)));
            let line = line.and_then(|(path, line)| Some((place(path)?, line)));
            if function.is_some() || line.is_some() {
                code.instructions.push(Instruction { address, function, line });
            }
        }
        code
    }

    /// The place of a text, which is taken in if there is room.
    fn place<'a>(&mut self, known: &mut HashMap<&'a str, u32>, text: &'a str) -> Option<u32> {
        if let Some(place) = known.get(text) {
            return Some(*place);
        }
        if !is_text(text) || self.texts.len() == MAX_TEXTS {
            return None;
        }
        let place = u32::try_from(self.texts.len()).expect("there are few texts");
        self.texts.push(text.to_owned());
        known.insert(text, place);
        Some(place)
    }

    /// What is known of the instruction at `address`.
    pub fn find(&self, address: u64) -> Option<CodePlace<'_>> {
        let at = self.instructions.binary_search_by_key(&address, |it| it.address).ok()?;
        let Instruction { function, line, .. } = self.instructions[at];
        let text = |place: u32| self.texts[place as usize].as_str();
        Some(CodePlace {
            function: function.map(|(name, offset)| (text(name), offset)),
            line: line.map(|(path, line)| (text(path), line)),
        })
    }

    /// How many instructions there are.
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.instructions.is_empty()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.texts.len() as u64);
        for text in &self.texts {
            varint::put(out, text.len() as u64);
            out.extend(text.as_bytes());
        }
        varint::put(out, self.instructions.len() as u64);
        let mut before = 0;
        for Instruction { address, function, line } in &self.instructions {
            varint::put(out, address - before);
            before = *address;
            varint::put(out, function.map_or(0, |(name, _)| u64::from(name) + 1));
            if let Some((_, offset)) = function {
                varint::put(out, *offset);
            }
            varint::put(out, line.map_or(0, |(path, _)| u64::from(path) + 1));
            if let Some((_, line)) = line {
                varint::put(out, u64::from(*line));
            }
        }
    }

    /// Inverse of [`Self::put`], of which `room` is still to come at most; the error is the rule that is
    /// broken.
    pub(crate) fn take(content: &mut &[u8], room: &mut Room) -> Result<Self, &'static str> {
        const CUT: &str = "an instruction is cut off";
        const LIMITS: &str = "an instruction breaks its limits";
        let number = |content: &mut &[u8]| varint::take(content).ok_or(CUT);
        let count = number(content)?;
        let within = |room: &mut usize, count: u64| {
            let left = usize::try_from(count).ok().and_then(|count| room.checked_sub(count));
            left.map(|left| *room = left)
        };
        within(&mut room.texts, count).ok_or("there are more than 65,536 texts")?;
        let mut code = Self::default();
        for _ in 0..count {
            let text = crate::header::take_text(content)?;
            if !is_text(text) {
                return Err("a text breaks its limits");
            }
            code.texts.push(text.to_owned());
        }
        let count = number(content)?;
        within(&mut room.instructions, count).ok_or("there are more than 65,536 instructions")?;
        let texts = code.texts.len() as u64;
        // 0 for none, else the text's place and 1.
        let text = |content: &mut &[u8]| match number(content)? {
            place if place > texts => Err(LIMITS),
            place => Ok(place.checked_sub(1).map(|place| u32::try_from(place).expect("few"))),
        };
        let mut address = 0_u64;
        for index in 0..count {
            let ahead = number(content)?;
            let next = address.checked_add(ahead).filter(|next| *next < ADDRESS_LIMIT);
            address = next.filter(|_| index == 0 || ahead > 0).ok_or(LIMITS)?;
            let function = match text(content)? {
                Some(name) => Some((name, number(content)?)),
                None => None,
            };
            let line = match text(content)? {
                Some(path) => {
                    let line = u32::try_from(number(content)?).ok().filter(|line| *line > 0);
                    Some((path, line.ok_or(LIMITS)?))
                }
                None => None,
            };
            code.instructions.push(Instruction { address, function, line });
        }
        Ok(code)
    }
}

/// How many texts and instructions a trace may still have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    texts: usize,
    instructions: usize,
}

impl Room {
    /// That of a trace without any.
    pub(crate) const ALL: Self = Self { texts: MAX_TEXTS, instructions: MAX_INSTRUCTIONS };

    /// What is left after `code`; `None` if it does not fit.
    pub(crate) fn after(self, code: &Code) -> Option<Self> {
        Some(Self {
            texts: self.texts.checked_sub(code.texts.len())?,
            instructions: self.instructions.checked_sub(code.len())?,
        })
    }
}

/// Whether a trace can hold this text.
fn is_text(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As much as a trace has room for, of the longest texts and numbers.
    pub(crate) fn full() -> Code {
        let places = (0_u32..).take(MAX_INSTRUCTIONS);
        let instruction = |place: u32| Instruction {
            address: ADDRESS_LIMIT - 1 - u64::from(u16::MAX) + u64::from(place),
            function: Some((place, u64::MAX)),
            line: Some((place, u32::MAX)),
        };
        Code {
            texts: places.clone().map(|place| format!("{place:0>255}")).collect(),
            instructions: places.map(instruction).collect(),
        }
    }

    /// Two functions with a line each: one of a program that lies 0x10000 higher than its file says.
    pub(crate) fn code() -> Code {
        Code {
            texts: vec!["main".into(), "src/a.c".into(), "é".into()],
            instructions: vec![
                Instruction { address: 0x40_1000, function: Some((0, 7)), line: Some((1, 42)) },
                Instruction { address: 0x40_1004, function: None, line: Some((1, u32::MAX)) },
                Instruction { address: ADDRESS_LIMIT - 1, function: Some((2, 0)), line: None },
            ],
        }
    }

    fn encoded(code: &Code) -> Vec<u8> {
        let mut bytes = Vec::new();
        code.put(&mut bytes);
        bytes
    }

    fn take(mut bytes: &[u8]) -> Result<Code, &'static str> {
        let code = Code::take(&mut bytes, &mut { Room::ALL })?;
        if bytes.is_empty() { Ok(code) } else { Err("bytes are left") }
    }

    #[test]
    fn code_is_read_as_it_was_written() {
        let code = code();
        assert_eq!(take(&encoded(&code)), Ok(code.clone()));
        assert_eq!(take(&encoded(&Code::default())), Ok(Code::default()));
        let found = code.find(0x40_1000).expect("known");
        assert_eq!((found.function, found.line), (Some(("main", 7)), Some(("src/a.c", 42))));
        assert_eq!(code.find(0x40_1001), None);
        let bytes = encoded(&code);
        for cut in 0..bytes.len() {
            assert!(take(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn code_that_breaks_a_rule_is_refused_with_the_rule() {
        let limits = "an instruction breaks its limits";
        for (bytes, rule) in [
            (&[][..], "an instruction is cut off"),
            (&[0x81, 0x80, 4], "there are more than 65,536 texts"),
            (&[1, 0], "a text breaks its limits"),
            (&[1, 1, 0x1b], "a text breaks its limits"),
            (&[1, 2, b'a'], "a text is cut off"),
            (&[0, 0x81, 0x80, 4], "there are more than 65,536 instructions"),
            (&[0, 1, 5], "an instruction is cut off"),
            (&[0, 1, 5, 1, 0], limits),
            (&[1, 1, b'a', 1, 5, 2, 0, 0], limits),
            (&[1, 1, b'a', 1, 5, 0, 1, 0], limits),
            (&[1, 1, b'a', 1, 5, 0, 1, 0x80, 0x80, 0x80, 0x80, 0x10], limits),
            (&[0, 2, 5, 0, 0, 0, 0, 0], limits),
            (&[0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], limits),
        ] {
            assert_eq!(take(bytes), Err(rule), "{bytes:?}");
        }
        assert!(take(&[1, 1, b'a', 1, 5, 1, 9, 1, 7]).is_ok());
    }

    #[test]
    fn a_trace_has_room_for_so_much() {
        let mut room = Room::ALL;
        for _ in 0..MAX_TEXTS / 3 {
            room = room.after(&code()).expect("it fits");
        }
        assert_eq!(room.after(&code()), None, "one text is left");
        let mut bytes = &encoded(&code())[..];
        assert!(Code::take(&mut bytes, &mut room).is_err());
    }

    #[test]
    fn instructions_get_their_names_where_the_program_lies() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
        let image = std::fs::read(path).expect("the example");
        let names = CodeNames::of_elf(&object::File::parse(&*image).expect("an ELF file"));
        let addresses = [0x21_0194, 0x21_0182, 0x21_0182, 0x9000, u64::MAX];
        let code = Code::new(&names, 0x1_0000, addresses);
        assert_eq!(code.len(), 2);
        let found = code.find(0x21_0194).expect("known");
        assert_eq!(found.function, Some(("setrlimit", 0x24)));
        assert_eq!(found.line, Some(("kernel.c", 106)));
        assert_eq!(take(&encoded(&code)), Ok(code));
    }
}
