//! Random instructions, most of which store.

use iced_x86::{
    ConditionCode, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic,
    OpKind,
};

use crate::random::Random;

/// Bits of an address register's number: RBX, RSP, RBP, RDI, R10 (with REX.B), RAX.
const BASES: [u8; 6] = [3, 4, 5, 7, 2, 0];

/// Opcodes of one byte that take a ModRM byte and may store.
const ONE: [u8; 42] = [
    0x00, 0x01, 0x08, 0x09, 0x10, 0x11, 0x18, 0x19, 0x20, 0x21, 0x28, 0x29, 0x30, 0x31, 0x80, 0x81,
    0x83, 0x86, 0x87, 0x88, 0x89, 0x8f, 0xc0, 0xc1, 0xc6, 0xc7, 0xd0, 0xd1, 0xd2, 0xd3, 0xf6, 0xf7,
    0xfe, 0xff, 0xd9, 0xdb, 0xdd, 0xdf, 0xda, 0xdc, 0xde, 0x8c,
];

/// Opcodes of one byte whose destination is implied.
const IMPLIED: [u8; 16] = [
    0x50, 0x53, 0x54, 0x57, 0x68, 0x6a, 0x9c, 0xa4, 0xa5, 0xaa, 0xab, 0xc8, 0xe8, 0xfc, 0xfd, 0xf9,
];

/// Opcodes behind 0FH.
const TWO: [u8; 50] = [
    0x11, 0x13, 0x17, 0x29, 0x2b, 0x7e, 0x7f, 0xd6, 0xe7, 0xc3, 0x90, 0x92, 0x94, 0x98, 0x9f, 0xa4,
    0xa5, 0xab, 0xac, 0xad, 0xb0, 0xb1, 0xb3, 0xba, 0xbb, 0xc0, 0xc1, 0xc7, 0xae, 0xf7, 0x10, 0x28,
    0x51, 0x54, 0x57, 0x58, 0x59, 0x5a, 0x5b, 0x5c, 0x5e, 0x6f, 0x70, 0x77, 0xef, 0xfe, 0x2a, 0x2d,
    0x00, 0x01,
];

/// Opcodes behind 0F3AH.
const THREE: [u8; 4] = [0x14, 0x15, 0x16, 0x17];

/// Opcodes of VEX maps 1 to 3.
const VEX: [&[u8]; 3] = [
    &[0x11, 0x13, 0x17, 0x29, 0x2b, 0x7e, 0x7f, 0xd6, 0xe7, 0xae, 0x58, 0x57, 0x77, 0x10, 0xf7],
    &[0x2e, 0x2f, 0x8e, 0x18, 0x58],
    &[0x14, 0x15, 0x16, 0x17, 0x19, 0x39, 0x1d],
];

/// Which instructions a machine can be asked for. Each is a question of its own.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    /// AMD's meaning of prefixes.
    pub(super) amd: bool,
    /// What shows selectors or flags of the system, which some KVM hides at CPL 3.
    pub(super) hidden: bool,
    /// Repeated string instructions and others of several stores.
    pub(super) several: bool,
    /// What stores flags or conditions that it has evaluated, or leaves some undefined: QEMU's BTC keeps
    /// what the instruction before it would have computed.
    pub(super) conditions: bool,
    /// MOV of a segment register behind REX.R.
    pub(super) extended: bool,
}

/// Encodings of which one instruction in four is: faults were found with these, and opcodes that come as they
/// may hardly ever make them.
const PICKED: [&[u8]; 24] = [
    // VCVTPS2PH, the store that has SIMD exceptions; more often, as they must be unmasked, too.
    &[0xc4, 0xe3, 0x79, 0x1d],
    &[0xc4, 0xe3, 0x79, 0x1d],
    &[0xc4, 0xe3, 0x79, 0x1d],
    &[0xc4, 0xe3, 0x7d, 0x1d],
    &[0xc4, 0xe3, 0x7d, 0x1d],
    // Repeated strings, whose elements are stores of their own.
    &[0xf3, 0xaa],
    &[0xf3, 0x48, 0xab],
    &[0xf3, 0xa4],
    &[0xf2, 0xa5],
    // Near calls whose operand size is the vendor's.
    &[0x66, 0xe8, 0, 0, 0, 0],
    &[0x66, 0x48, 0xe8, 0, 0, 0, 0],
    // FNSTENV, FNSAVE, FXSAVE.
    &[0xd9, FIELD | 6],
    &[0x66, 0xd9, FIELD | 6],
    &[0xdd, FIELD | 6],
    &[0x0f, 0xae, FIELD],
    &[0x48, 0x0f, 0xae, FIELD],
    // Stores of the x87 with exceptions of their own: FISTP, FSTP, FBSTP.
    &[0xdf, FIELD | 7],
    &[0xd9, FIELD | 3],
    &[0xdf, FIELD | 6],
    // STMXCSR, MOVUPS, VMOVDQU.
    &[0x0f, 0xae, FIELD | 3],
    &[0x0f, 0x11],
    &[0xc5, 0xfe, 0x7f],
    // CMPXCHG, SETcc.
    &[0x48, 0x0f, 0xb1],
    &[0x0f, 0x94],
];

/// Stands for ModRM with this opcode extension.
const FIELD: u8 = 0xc0;

impl Choice {
    fn options(self) -> u32 {
        if self.amd { DecoderOptions::AMD } else { DecoderOptions::NONE }
    }

    /// A random instruction for 64-bit code at `rip`, behind others.
    pub(super) fn instruction(self, random: &mut Random, rip: u64, before: &[Vec<u8>]) -> Vec<u8> {
        // AMD's processors forget the x87's pointers when its state is saved and restored without an
        // exception pending, and all forget selectors (docs/kvm.md). FLDCW may make one pending.
        let forgets = self.amd && before.iter().any(|bytes| self.is_x87(bytes));
        loop {
            let mut bytes = encoding(random);
            bytes.truncate(15);
            let mut decoder = Decoder::with_ip(64, &bytes, rip, self.options());
            let instruction = decoder.decode();
            if instruction.is_invalid() || !self.takes(&instruction) {
                continue;
            }
            let tells = matches!(
                instruction.mnemonic(),
                Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Fldcw
            );
            if forgets && tells {
                continue;
            }
            bytes.truncate(instruction.len());
            return bytes;
        }
    }

    fn is_x87(self, bytes: &[u8]) -> bool {
        use CpuidFeature as F;
        let instruction = Decoder::new(64, bytes, self.options()).decode();
        let mut features = instruction.cpuid_features().iter();
        instruction.mnemonic() == Mnemonic::Fisttp
            || features.any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387))
    }

    #[allow(clippy::too_many_lines)] // A list.
    fn takes(self, instruction: &Instruction) -> bool {
        use Mnemonic as M;
        let mnemonic = instruction.mnemonic();
        let call = instruction.is_call_near();
        if !call && !matches!(instruction.flow_control(), FlowControl::Next) {
            return false;
        }
        // Calls with any target run away; this one goes to what follows.
        let indirect = instruction.is_call_near_indirect();
        let to_next = instruction.near_branch_target() == instruction.next_ip() & 0xffff;
        if call && (indirect || !to_next) {
            return false;
        }
        let differs_each_time = matches!(
            mnemonic,
            M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdrand | M::Rdseed | M::Cpuid | M::Rdpid
        );
        // They change what the test itself goes by, or are the system's.
        let systems = matches!(
            mnemonic,
            M::Popf
                | M::Popfd
                | M::Popfq
                | M::Sti
                | M::Cli
                | M::Swapgs
                | M::Wrfsbase
                | M::Wrgsbase
                | M::Xsetbv
                | M::Xgetbv
                | M::Monitor
                | M::Mwait
                | M::Monitorx
                | M::Mwaitx
                | M::Wait
                | M::Sgdt
                | M::Sidt
                | M::Lgdt
                | M::Lidt
                | M::Lldt
                | M::Ltr
                | M::Lmsw
                | M::Invlpg
                | M::Verr
                | M::Verw
                | M::Xrstor
                | M::Xrstor64
                | M::Fxrstor
                | M::Fxrstor64
                | M::Clac
                | M::Stac
                | M::Encls
                | M::Rdpru
                | M::Clflush
                | M::Clflushopt
                | M::Clwb
                | M::Wrpkru
                | M::Rdpkru
                | M::Fldenv
                | M::Frstor
                | M::Umonitor
                | M::Tpause
        );
        let writes_segment = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register()
            && mnemonic != M::Push;
        let pops_segment = mnemonic == M::Pop
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register();
        // A KVM that runs CPL 3 without the processor's help leaves the host's XCR0 in force there.
        let saves = matches!(
            mnemonic,
            M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64
        );
        let segment = (0..instruction.op_count()).any(|operand| {
            instruction.op_kind(operand) == OpKind::Register
                && instruction.op_register(operand).is_segment_register()
        });
        let hides = saves
            || segment
            || matches!(mnemonic, M::Pushf | M::Pushfd | M::Pushfq | M::Smsw | M::Sldt | M::Str);
        let several = instruction.has_rep_prefix()
            || instruction.has_repne_prefix()
            || mnemonic == M::Enter
            || is_in_part(instruction);
        let known = instruction.cpuid_features().iter().all(|feature| {
            !matches!(
                feature,
                CpuidFeature::VMX
                    | CpuidFeature::SVM
                    | CpuidFeature::MPX
                    | CpuidFeature::CET_SS
                    | CpuidFeature::CET_IBT
                    | CpuidFeature::RTM
                    | CpuidFeature::PADLOCK_RNG
                    | CpuidFeature::SMX
            )
        });
        !instruction.is_privileged()
            && !differs_each_time
            && !systems
            && !writes_segment
            && !pops_segment
            && known
            && (self.hidden || !hides)
            && (self.several || !several)
            && (self.conditions || !takes_conditions(instruction))
            && (self.extended || !segment || mnemonic != M::Mov)
    }
}

/// Whether it stores more than a vector register, all of it.
pub(super) fn is_wide(bytes: &[u8]) -> bool {
    use Mnemonic as M;
    let mnemonic = Decoder::new(64, bytes, DecoderOptions::NONE).decode().mnemonic();
    matches!(mnemonic, M::Fxsave | M::Fxsave64 | M::Fnsave | M::Fnstenv | M::Clzero)
}

/// Whether it stores flags or a condition, or tests a bit, after which most flags are undefined.
fn takes_conditions(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let flags = [M::Pushf, M::Pushfd, M::Pushfq, M::Bt, M::Btc, M::Btr, M::Bts];
    instruction.condition_code() != ConditionCode::None || flags.contains(&instruction.mnemonic())
}

/// Whether it is a repeated string instruction.
pub(super) fn is_repeated(bytes: &[u8]) -> bool {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// Whether it is ENTER.
pub(super) fn is_enter(bytes: &[u8]) -> bool {
    Decoder::new(64, bytes, DecoderOptions::NONE).decode().mnemonic() == Mnemonic::Enter
}

/// Whether it may leave bytes as they are among those that it stores.
fn is_in_part(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
    )
}

fn encoding(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.below(4) == 0 {
        return picked(random);
    }
    if random.below(10) == 0 {
        return vex(random);
    }
    for (prefix, one_in) in [(0x66, 6), (0xf2, 10), (0xf3, 8), (0xf0, 8), (0x67, 25), (0x64, 30)] {
        if random.below(one_in) == 0 {
            bytes.push(prefix);
        }
    }
    if random.below(2) == 0 {
        bytes.push(0x40 | random.next().to_le_bytes()[0] & 15);
    }
    match random.below(8) {
        0..=2 => bytes.push(random.pick(&ONE)),
        3 => {
            let opcode = random.pick(&IMPLIED);
            bytes.push(opcode);
            if opcode == 0xe8 {
                bytes.extend([0; 4]);
            }
            if opcode == 0xc8 {
                let levels = random.pick(&[0, 1, 2, 5, 31, 33]);
                bytes.extend([random.next().to_le_bytes()[0], 0, levels]);
            }
        }
        4..=6 => bytes.extend([0x0f, random.pick(&TWO)]),
        _ => bytes.extend([0x0f, 0x3a, random.pick(&THREE)]),
    }
    operand(random, &mut bytes);
    bytes
}

/// One of [`PICKED`], with operands as they come.
fn picked(random: &mut Random) -> Vec<u8> {
    let mut bytes = random.pick(&PICKED).to_vec();
    let extension = bytes.pop_if(|last| *last & !7 == FIELD);
    let at = bytes.len();
    operand(random, &mut bytes);
    if let Some(extension) = extension {
        bytes[at] = bytes[at] & !0x38 | (extension & 7) << 3;
    }
    bytes
}

/// A string instruction that is repeated.
pub(super) fn repeated(random: &mut Random) -> Vec<u8> {
    let opcode = random.pick(&[0xa4, 0xa5, 0xaa, 0xab]);
    let wide = random.below(2) == 0;
    [&[random.pick(&[0xf2, 0xf3])][..], if wide { &[0x48] } else { &[] }, &[opcode]].concat()
}

fn vex(random: &mut Random) -> Vec<u8> {
    let map = random.below(3);
    let any = random.next().to_le_bytes();
    // R and X as they come, B and unused bits set; W, vvvv, L and pp.
    let second = any[0] & 0xc0 | 0x20 | (u8::try_from(map).expect("small") + 1);
    let mut bytes = vec![0xc4, second, any[1]];
    bytes.push(random.pick(VEX[usize::try_from(map).expect("small")]));
    operand(random, &mut bytes);
    bytes
}

/// ModRM, and what follows it.
fn operand(random: &mut Random, bytes: &mut Vec<u8>) {
    let any = random.next().to_le_bytes();
    let reg = any[0] & 0x38;
    let base = random.pick(&BASES);
    match random.below(10) {
        0 => bytes.push(0xc0 | reg | any[1] & 7),
        1..=4 => {
            bytes.push(0x40 | reg | base);
            if base == 4 {
                bytes.push(0x24);
            }
            bytes.push(any[2] & 0x3f);
        }
        5 => {
            // With an index, RCX, which is small.
            bytes.extend([0x44 | reg, any[3] & 0xc0 | 0x08 | base, any[2] & 0x3f]);
        }
        _ => {
            bytes.push(if base == 5 { 0x40 | reg | base } else { reg | base });
            if base == 4 {
                bytes.push(0x24);
            }
            if base == 5 {
                bytes.push(0);
            }
        }
    }
    bytes.extend([any[4], any[5], any[6], any[7] & 0x7f, 0, 0, 0, 0]);
}

/// The text of a stream, for messages.
pub(super) fn text(stream: &[Vec<u8>], choice: Choice) -> String {
    let lines = stream.iter().map(|bytes| {
        let mut decoder = Decoder::with_ip(64, bytes, 0, choice.options());
        format!("  {bytes:02x?} {}", decoder.decode())
    });
    lines.collect::<Vec<_>>().join("\n")
}
