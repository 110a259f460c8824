//! The content of a block: runs of rightly guessed writes and what lies between them.
//!
//! A block is `run (code details run)*`: a run is a count of writes guessed right, a code says
//! what was wrong about the write after it.

use std::collections::HashMap;

use crate::predict::{GUESSES, Predictor, SiteId};
use crate::varint;
use crate::write::{ADDRESS_LIMIT, MAX_WRITE_SIZE, Write};

/// Low two bits of a code: how the site is given.
mod site_code {
    pub(super) const GUESSED: u8 = 0;
    pub(super) const SECOND_GUESS: u8 = 1;
    pub(super) const NUMBERED: u8 = 2;
    pub(super) const NEW: u8 = 3;
}

/// Code divided by four: how the address is given. Below [`GUESSES`], by that way.
mod address_code {
    pub(super) const USUAL_WAY: u8 = 4;
    pub(super) const FROM_LAST: u8 = 5;
    pub(super) const FROM_PREVIOUS: u8 = 6;
}

/// A difference of two 48-bit addresses as the shortest signed number of 48 bits.
fn signed_48(difference: u64) -> u64 {
    ((difference << 16).cast_signed() >> 16).cast_unsigned()
}

/// Turns writes into block content.
pub(crate) struct BlockEncoder {
    predictor: Predictor,
    numbers: HashMap<(u64, u8), SiteId>,
    run: u64,
    content: Vec<u8>,
}

impl BlockEncoder {
    pub(crate) fn new() -> Self {
        let predictor = Predictor::new();
        let first = predictor.site(0);
        let numbers = HashMap::from([((first.pc, first.size), 0)]);
        Self { predictor, numbers, run: 0, content: Vec::new() }
    }

    /// Adds a write, which must be valid.
    pub(crate) fn push(&mut self, write: Write) {
        debug_assert!(write.is_valid(), "the writer checks every write");
        if self.predictor.take_as_guessed(write.pc, write.address, write.size) {
            self.run += 1;
            return;
        }
        // Before a new site may take the place of the previous one.
        let pc_before = self.predictor.site(self.predictor.previous_site()).pc;
        let guessed = self.predictor.guess_site();
        let site = self.predictor.site(guessed);
        let (site_code, id) = if (site.pc, site.size) == (write.pc, write.size) {
            (site_code::GUESSED, guessed)
        } else {
            self.find_or_define(write)
        };
        let guesses = self.predictor.guess_address(id);
        let site = self.predictor.site(id);
        let from_last = varint::zigzag(signed_48(write.address.wrapping_sub(site.last)));
        let previous = self.predictor.previous_address();
        let from_previous = varint::zigzag(signed_48(write.address.wrapping_sub(previous)));
        let mut way = site.way;
        let (address_code, detail) = if guesses[usize::from(way)] == write.address {
            (address_code::USUAL_WAY, None)
        } else if let Some(right) = (0_u8..).zip(guesses).find(|&(_, g)| g == write.address) {
            way = right.0;
            (way, None)
        } else if from_last <= from_previous {
            (address_code::FROM_LAST, Some(from_last))
        } else {
            (address_code::FROM_PREVIOUS, Some(from_previous))
        };
        if (site_code, address_code) == (site_code::GUESSED, address_code::USUAL_WAY) {
            self.run += 1;
        } else {
            varint::put(&mut self.content, std::mem::take(&mut self.run));
            self.content.push(site_code | (address_code << 2));
            match site_code {
                site_code::NUMBERED => self.content.extend(id.to_le_bytes()),
                site_code::NEW => {
                    let difference = write.pc.wrapping_sub(pc_before);
                    varint::put(&mut self.content, varint::zigzag(difference));
                    self.content.push(write.size);
                }
                _ => {}
            }
            if let Some(detail) = detail {
                varint::put(&mut self.content, detail);
            }
        }
        self.predictor.update(id, write.address, way);
    }

    fn find_or_define(&mut self, write: Write) -> (u8, SiteId) {
        let key = (write.pc, write.size);
        if let Some(&id) = self.numbers.get(&key) {
            let second = self.predictor.second_guess_site() == id;
            return (if second { site_code::SECOND_GUESS } else { site_code::NUMBERED }, id);
        }
        let next = self.predictor.next_id();
        if self.predictor.is_defined(next) {
            let oldest = self.predictor.site(next);
            let removed = self.numbers.remove(&(oldest.pc, oldest.size));
            assert_eq!(removed, Some(next), "every defined site is found by its key");
        }
        let id = self.predictor.define(write.pc, write.size);
        self.numbers.insert(key, id);
        (site_code::NEW, id)
    }

    /// Gives the block's content and starts the next block, with what has been learnt kept.
    pub(crate) fn take(&mut self, content: &mut Vec<u8>) {
        varint::put(&mut self.content, std::mem::take(&mut self.run));
        std::mem::swap(&mut self.content, content);
        self.content.clear();
    }
}

/// Turns block content back into writes.
pub(crate) struct BlockDecoder {
    predictor: Predictor,
}

impl BlockDecoder {
    pub(crate) fn new() -> Self {
        Self { predictor: Predictor::new() }
    }

    /// Fills `out`; the error is the rule that the content breaks.
    pub(crate) fn decode(
        &mut self,
        mut content: &[u8],
        mut out: &mut [Write],
    ) -> Result<(), &'static str> {
        loop {
            let run = varint::take(&mut content).ok_or("a run is cut off")?;
            let run = usize::try_from(run).ok().filter(|&run| run <= out.len());
            let (guessed, rest) = out.split_at_mut(run.ok_or("a run is longer than the block")?);
            self.run(guessed)?;
            let Some((write, rest)) = rest.split_first_mut() else {
                return if content.is_empty() { Ok(()) } else { Err("bytes follow the last run") };
            };
            *write = self.exception(&mut content)?;
            out = rest;
        }
    }

    /// Writes whose site and address are both guessed right.
    fn run(&mut self, out: &mut [Write]) -> Result<(), &'static str> {
        let predictor = &mut self.predictor;
        for write in out {
            let id = predictor.guess_site();
            let guesses = predictor.guess_address(id);
            let site = predictor.site(id);
            let way = site.way;
            let address = guesses[usize::from(way) % GUESSES];
            *write = Write { pc: site.pc, address, size: site.size };
            if !write.is_valid() {
                return Err("a write passes the highest address");
            }
            predictor.update(id, address, way);
        }
        Ok(())
    }

    fn exception(&mut self, content: &mut &[u8]) -> Result<Write, &'static str> {
        let predictor = &mut self.predictor;
        let code = take_byte(content)?;
        let id = match code & 3 {
            site_code::GUESSED => predictor.guess_site(),
            site_code::SECOND_GUESS => predictor.second_guess_site(),
            site_code::NUMBERED => {
                let id = SiteId::from_le_bytes([take_byte(content)?, take_byte(content)?]);
                if !predictor.is_defined(id) {
                    return Err("a site is used before it is defined");
                }
                id
            }
            _ => {
                let difference = varint::take(content).ok_or("a site is cut off")?;
                let before = predictor.site(predictor.previous_site()).pc;
                let pc = before.wrapping_add(varint::unzigzag(difference));
                let size = take_byte(content)?;
                if !(1..=MAX_WRITE_SIZE).contains(&size) {
                    return Err("a write has 1 to 64 bytes");
                }
                predictor.define(pc, size)
            }
        };
        let site = *predictor.site(id);
        let mut way = site.way;
        let address = match code >> 2 {
            right @ 0..address_code::USUAL_WAY => {
                way = right;
                predictor.guess_address(id)[usize::from(right)]
            }
            address_code::USUAL_WAY => predictor.guess_address(id)[usize::from(way)],
            from @ (address_code::FROM_LAST | address_code::FROM_PREVIOUS) => {
                let difference = varint::take(content).ok_or("an address is cut off")?;
                let last = from == address_code::FROM_LAST;
                let base = if last { site.last } else { predictor.previous_address() };
                base.wrapping_add(varint::unzigzag(difference)) & (ADDRESS_LIMIT - 1)
            }
            _ => return Err("unknown code"),
        };
        let write = Write { pc: site.pc, address, size: site.size };
        if !write.is_valid() {
            return Err("a write passes the highest address");
        }
        predictor.update(id, address, way);
        Ok(write)
    }
}

fn take_byte(content: &mut &[u8]) -> Result<u8, &'static str> {
    let (&byte, rest) = content.split_first().ok_or("the block is cut off")?;
    *content = rest;
    Ok(byte)
}
