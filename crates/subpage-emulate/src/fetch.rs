//! The instruction at the guest's instruction pointer.

use iced_x86::{Decoder, DecoderOptions, Instruction};
use subpage::address::PAGE_BYTES;

use super::linear::{advance, read_linear};
use super::{Access, Exception, Fault, PagingFeatures};
use crate::guest::{PhysicalMemory, State, Vendor};

/// Longest instruction that a processor executes.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// A fetched and decoded instruction.
#[derive(Debug, Clone, Copy)]
pub struct GuestInstruction {
    instruction: Instruction,
    bytes: [u8; MAX_INSTRUCTION_BYTES],
}

impl GuestInstruction {
    /// Fetches and decodes the instruction at RIP, with the privilege of `state`.
    ///
    /// Reads page by page and no further than the instruction goes: what follows it may be absent.
    /// The bytes are what memory holds now. Another processor may have changed them since the exit,
    /// so nothing about them is to be taken for granted because the processor has executed them.
    ///
    /// Errors: what the fetch would cause; #UD (vector 6) for bytes that are no instruction.
    pub fn fetch<M: PhysicalMemory>(
        memory: &M,
        paging: PagingFeatures,
        state: &State,
    ) -> Result<Self, Fault> {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let mut have = 0;
        loop {
            let linear = fetch_address(state, have as u64)?;
            let in_page = usize::try_from(PAGE_BYTES - linear % PAGE_BYTES).unwrap_or(1);
            let in_segment = in_segment(state, have as u64);
            let take = in_page.min(in_segment).min(MAX_INSTRUCTION_BYTES - have);
            let access = Access::fetch_by(state);
            read_linear(memory, paging, state, linear, access, &mut bytes[have..have + take])?;
            have += take;
            if let Some(code) = Self::decode(state, &bytes[..have]) {
                return Ok(code);
            }
            if have == MAX_INSTRUCTION_BYTES || !needs_more(state, &bytes[..have]) {
                let invalid = Exception::INVALID_OPCODE;
                return Err(invalid.into());
            }
        }
    }

    /// Decodes `bytes` as the instruction at RIP; `None` if they are not a whole one.
    ///
    /// Bytes after the first [`MAX_INSTRUCTION_BYTES`] are not looked at.
    pub fn decode(state: &State, bytes: &[u8]) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(MAX_INSTRUCTION_BYTES)];
        let mut decoder = decoder(state, bytes);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        let mut kept = [0; MAX_INSTRUCTION_BYTES];
        kept[..instruction.len()].copy_from_slice(&bytes[..instruction.len()]);
        Some(Self { instruction, bytes: kept })
    }

    /// The instruction's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.instruction.len()]
    }

    /// The instruction, decoded.
    pub const fn instruction(&self) -> &Instruction {
        &self.instruction
    }
}

fn decoder<'a>(state: &State, bytes: &'a [u8]) -> Decoder<'a> {
    let ip = if state.is_64_bit() { state.rip } else { state.rip & 0xffff_ffff };
    let options = match state.vendor {
        Vendor::Intel => DecoderOptions::NONE,
        Vendor::Amd => DecoderOptions::AMD,
    };
    Decoder::with_ip(state.bitness(), bytes, ip, options)
}

fn needs_more(state: &State, bytes: &[u8]) -> bool {
    let mut decoder = decoder(state, bytes);
    decoder.decode().is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
}

/// Linear address of the instruction's byte `index`.
fn fetch_address(state: &State, index: u64) -> Result<u64, Exception> {
    if state.is_64_bit() {
        let linear = state.rip.wrapping_add(index);
        return if super::is_canonical(linear) {
            Ok(linear)
        } else {
            Err(Exception::general_protection(0))
        };
    }
    if in_segment(state, index) == 0 {
        return Err(Exception::general_protection(0));
    }
    let linear = state.segments.cs.base.wrapping_add(state.rip & 0xffff_ffff).wrapping_add(index);
    // Compatibility mode, too, has linear addresses of 32 bits.
    Ok(advance(state, linear, 0) & 0xffff_ffff)
}

/// How many bytes the code segment has from the instruction's byte `index` on.
fn in_segment(state: &State, index: u64) -> usize {
    if state.is_64_bit() {
        return MAX_INSTRUCTION_BYTES;
    }
    let offset = (state.rip & 0xffff_ffff) + index;
    let rest = (u64::from(state.segments.cs.limit) + 1).saturating_sub(offset);
    usize::try_from(rest).map_or(MAX_INSTRUCTION_BYTES, |rest| rest.min(MAX_INSTRUCTION_BYTES))
}
