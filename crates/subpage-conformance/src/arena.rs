//! The arena as the model sees it: the same words are tables and memory.

use std::cell::Cell;
use std::collections::BTreeMap;

use subpage::address::Hpa;
use subpage::frames::{EntryIndex, OutOfFrames, TableFrame, TableFrames};
use subpage_vmx::conformance::format::{ARENA, ARENA_WORDS};

use crate::case::Word;

/// Words of host-physical memory from [`ARENA`] on.
///
/// A case that makes the processor touch anything else is of no use: it would read what the machine
/// happens to hold there, and write over the executor. Such a touch reads zero, changes nothing, and
/// is remembered.
#[derive(Debug, Clone)]
pub(crate) struct Arena {
    words: Box<[u64]>,
    left: Cell<bool>,
    /// Words that the processor stored to since the last [`begin`](Self::begin), and what they were
    /// at that time.
    before: BTreeMap<usize, u64>,
}

impl Arena {
    /// Zeros.
    pub(crate) fn new() -> Self {
        Self { words: vec![0; ARENA_WORDS].into(), left: Cell::new(false), before: BTreeMap::new() }
    }

    /// Stores words as the executor does.
    ///
    /// # Panics
    /// If a word lies outside of the arena: no batch can hold such a store.
    pub(crate) fn store_words(&mut self, words: &[Word]) {
        for (word, value) in words {
            self.words[*word as usize] = *value;
        }
    }

    /// Whether something outside of the arena was touched.
    pub(crate) fn was_left(&self) -> bool {
        self.left.get()
    }

    /// A step begins: [`changes`](Self::changes) counts from here.
    pub(crate) fn begin(&mut self) {
        self.before.clear();
    }

    /// Words that are not what they were when the step began.
    pub(crate) fn changes(&self) -> Vec<Word> {
        let changed = self.before.iter().filter(|(at, before)| self.words[**at] != **before);
        changed.map(|(at, _)| (u32::try_from(*at).expect("few words"), self.words[*at])).collect()
    }

    fn set(&mut self, word: usize, value: u64) {
        self.before.entry(word).or_insert(self.words[word]);
        self.words[word] = value;
    }

    fn word(&self, hpa: Hpa) -> Option<usize> {
        let word = hpa.as_u64().checked_sub(ARENA).map(|offset| offset / 8);
        let word = word.and_then(|word| usize::try_from(word).ok());
        let inside = word.filter(|word| *word < ARENA_WORDS);
        if inside.is_none() {
            self.left.set(true);
        }
        inside
    }

    /// The byte at an address.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn byte(&self, hpa: Hpa) -> u8 {
        let shift = hpa.as_u64() % 8 * 8;
        self.word(hpa).map_or(0, |word| (self.words[word] >> shift) as u8)
    }

    /// Sets the byte at an address.
    pub(crate) fn set_byte(&mut self, hpa: Hpa, value: u8) {
        let shift = hpa.as_u64() % 8 * 8;
        if let Some(word) = self.word(hpa) {
            let kept = self.words[word] & !(0xFF << shift);
            self.set(word, kept | u64::from(value) << shift);
        }
    }

    fn entry(&self, frame: TableFrame, index: EntryIndex) -> Option<usize> {
        self.word(frame.hpa()).map(|word| word + index.get())
    }
}

/// Nothing is allocated here: a case names its frames itself.
impl TableFrames for Arena {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        Err(OutOfFrames)
    }

    fn release(&mut self, _: TableFrame) {
        panic!("the processor releases no table");
    }

    fn make_room(&mut self, _: TableFrame, _: usize) -> Result<(), OutOfFrames> {
        Ok(())
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.entry(frame, index).map_or(0, |word| self.words[word])
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        if let Some(word) = self.entry(frame, index) {
            self.set(word, value);
        }
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        let found = self.load(frame, index);
        if found != current {
            return Err(found);
        }
        self.store(frame, index, new);
        Ok(())
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        for index in EntryIndex::all() {
            self.store(frame, index, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_words_and_entries_are_the_same_memory() {
        let mut arena = Arena::new();
        arena.store_words(&[(0, 7)]);
        let before = arena.clone();
        arena.set_byte(Hpa::new(ARENA + 0x1009), 0xAB);
        let frame = TableFrame::try_new(Hpa::new(ARENA + 0x1000)).expect("aligned");
        let index = EntryIndex::truncate(1);
        assert_eq!(arena.load(frame, index), 0xAB00);
        assert_eq!(arena.compare_exchange(frame, index, 0xAB00, 0x1234), Ok(()));
        assert_eq!(arena.byte(Hpa::new(ARENA + 0x1008)), 0x34);
        assert_eq!(arena.changes(), [(513, 0x1234)]);
        arena.begin();
        assert_eq!(arena.changes(), []);
        assert!(!arena.was_left());
        for outside in [0, ARENA - 1, ARENA + ARENA_WORDS as u64 * 8, u64::MAX >> 12] {
            let mut arena = before.clone();
            arena.set_byte(Hpa::new(outside), 1);
            assert!(arena.was_left());
            assert_eq!((arena.byte(Hpa::new(outside)), arena.changes()), (0, vec![]));
        }
    }
}
