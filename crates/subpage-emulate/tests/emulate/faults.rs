//! Instructions that fault while they are executed for the guest.

use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use nix::libc;
use nix::sys::mman::ProtFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use subpage_emulate::{
    Exception, Executor, Extended, FxArea, GuestInstruction, Incomplete, Progress, Refusal,
    Scratch, Store, Trampoline, Unsupported, Window,
};

use crate::flat::Flat;
use crate::machine::{OwnTrampoline, PAGING, Pages, TABLES, state_64};

/// The trampoline of the test that runs; faults elsewhere are nobody's.
static TRAMPOLINE: AtomicPtr<Trampoline> = AtomicPtr::new(std::ptr::null_mut());
static FAULTS: AtomicUsize = AtomicUsize::new(0);
/// One such test at a time.
static RUNNING: Mutex<()> = Mutex::new(());

/// What the hypervisor's exception handler does.
extern "C" fn continue_at_recovery(
    signal: libc::c_int,
    _: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel passes the interrupted context, which nobody else has.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let rip = &mut registers[libc::REG_RIP as usize];
    let trampoline = TRAMPOLINE.load(Ordering::Relaxed);
    // SAFETY: null, or the trampoline of the running test, which outlives its faults. It is borrowed
    // mutably by the interrupted call; only a number that never changes is read.
    let ours = unsafe { trampoline.as_ref() }.is_some_and(|it| it.contains(rip.cast_unsigned()));
    if ours {
        FAULTS.fetch_add(1, Ordering::Relaxed);
        *rip = Trampoline::recovery_address().cast_signed();
        registers[libc::REG_RAX as usize] = registers[libc::REG_TRAPNO as usize];
    } else {
        // SAFETY: both are async-signal-safe; the signal then has its usual end.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn with_handler(test: impl FnOnce(&mut OwnTrampoline)) {
    let _one_at_a_time = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let handler = SigHandler::SigAction(continue_at_recovery);
    let action = SigAction::new(handler, SaFlags::SA_SIGINFO, SigSet::empty());
    for signal in [Signal::SIGSEGV, Signal::SIGILL, Signal::SIGFPE, Signal::SIGBUS] {
        // SAFETY: the handler only uses what a handler may.
        unsafe { sigaction(signal, &action) }.unwrap();
    }
    let mut own = OwnTrampoline::new();
    TRAMPOLINE.store(&raw mut own.trampoline, Ordering::Relaxed);
    FAULTS.store(0, Ordering::Relaxed);
    test(&mut own);
    TRAMPOLINE.store(std::ptr::null_mut(), Ordering::Relaxed);
}

fn machine<'a>(
    own: &'a mut OwnTrampoline,
    memory: &'a Flat,
    fx: &'a mut FxArea,
) -> Executor<'a, Flat> {
    let trampoline = &mut own.trampoline;
    Executor { memory, paging: PAGING, tables: &TABLES, trampoline, extended: Extended::Fx(fx) }
}

#[test]
fn a_window_that_is_not_mapped_leaves_the_guest_as_it_was() {
    with_handler(|own| {
        let memory = Flat::new(0);
        let absent = Pages::new(4096, ProtFlags::PROT_NONE);
        // XADD [RBX], RSP; MOVUPS [RBX], XMM3; FSTP QWORD PTR [RBX]
        let forms: [(&[u8], usize); 3] =
            [(&[0x48, 0x0f, 0xc1, 0x23], 8), (&[0x0f, 0x11, 0x1b], 16), (&[0xdd, 0x1b], 8)];
        for (number, (code, bytes)) in forms.into_iter().enumerate() {
            let mut state = state_64();
            state.registers.0 = std::array::from_fn(|number| 0x1111 * number as u64);
            let before = state;
            let mut fx = FxArea::INITIAL;
            fx.0[160..416].fill(0x5a);
            let fx_before = fx;
            let instruction = GuestInstruction::decode(&state, code).unwrap();
            let store = Store::of(&instruction, &state).unwrap();
            // SAFETY: nothing is mapped there, so nothing can be hurt; the fault is the test.
            let mut window = unsafe { Window::new(absent.first, bytes) };
            let got = machine(own, &memory, &mut fx).complete(&store, &mut state, &mut window);
            assert_eq!(got, Err(Incomplete::Trampoline));
            assert_eq!(FAULTS.load(Ordering::Relaxed), number + 1);
            assert_eq!(state, before);
            assert!(fx == fx_before);

            // And the trampoline is as good as before.
            let mut scratch = Scratch::new(store.linear(), &vec![0; bytes]);
            let got =
                machine(own, &memory, &mut fx).complete(&store, &mut state, &mut scratch.window());
            assert_eq!(got, Ok(Progress::Done));
        }
    });
}

/// What software does not know is one thing, however late that is found; what faults is another.
#[test]
fn a_refusal_says_the_same_where_a_store_is_carried_out() {
    let unknown = Unsupported::ExtendedState;
    assert_eq!(Incomplete::from(Refusal::from(unknown)), Incomplete::Unsupported(unknown));
    let exception = Exception::general_protection(0);
    assert_eq!(Incomplete::from(Refusal::from(exception)), Incomplete::Fault(exception.into()));
}

#[test]
fn an_instruction_that_the_processor_lacks_is_an_error() {
    if std::arch::is_x86_feature_detected!("avx512f") {
        println!("skipped: this processor has AVX-512");
        return;
    }
    with_handler(|own| {
        let memory = Flat::new(0);
        let mut state = state_64();
        // VMOVUPS [RBX], ZMM1
        let code = [0x62, 0xf1, 0x7c, 0x48, 0x11, 0x0b];
        let instruction = GuestInstruction::decode(&state, &code).unwrap();
        let store = Store::of(&instruction, &state).unwrap();
        assert_eq!(store.length(), 64);
        let mut fx = FxArea::INITIAL;
        let mut scratch = Scratch::new(store.linear(), &[0xaa; 64]);
        let got =
            machine(own, &memory, &mut fx).complete(&store, &mut state, &mut scratch.window());
        assert_eq!(got, exception(6));
        assert_eq!(scratch.bytes(), [0xaa; 64]);
    });
}

#[test]
fn a_pending_x87_exception_comes_before_the_store() {
    with_handler(|own| {
        let memory = Flat::new(0);
        let mut state = state_64();
        let mut fx = FxArea::INITIAL;
        // Division by zero, unmasked and pending.
        fx.0[0] = 0x7b;
        fx.0[2] = 0x84;
        fx.0[3] = 0x80;
        let fx_before = fx;
        // FSTP QWORD PTR [RBX]
        let instruction = GuestInstruction::decode(&state, &[0xdd, 0x1b]).unwrap();
        let store = Store::of(&instruction, &state).unwrap();
        let mut scratch = Scratch::new(store.linear(), &[0xaa; 8]);
        let got =
            machine(own, &memory, &mut fx).complete(&store, &mut state, &mut scratch.window());
        assert_eq!(got, exception(16));
        assert!(fx == fx_before);
        assert_eq!(scratch.bytes(), [0xaa; 8]);
    });
}

/// Unmasked SSE exceptions are #XM, not #MF, and their flags are in MXCSR when the handler looks; a
/// system that does not know them gets #UD.
#[test]
fn an_unmasked_sse_exception_has_its_own_vector_and_leaves_its_flag() {
    if !std::arch::is_x86_feature_detected!("f16c") {
        println!("skipped: this processor has no F16C");
        return;
    }
    with_handler(|own| {
        let memory = Flat::new(0);
        for (cr4, vector) in [(0x4_06a0, 19), (0x4_02a0, 6)] {
            let mut state = state_64();
            state.cr4 = cr4;
            let before = state;
            let mut fx = FxArea::INITIAL;
            // Invalid operations unmasked; XMM1 is a signalling NaN.
            fx.0[24] = 0;
            fx.0[160 + 16..160 + 20].copy_from_slice(&0x7f80_0001_u32.to_le_bytes());
            let mut flagged = fx;
            // IE.
            flagged.0[24] = 1;
            // VCVTPS2PH [RBX], XMM1, 0
            let code = [0xc4, 0xe3, 0x79, 0x1d, 0x0b, 0x00];
            let instruction = GuestInstruction::decode(&state, &code).unwrap();
            let store = Store::of(&instruction, &state).unwrap();
            let mut scratch = Scratch::new(store.linear(), &[0xaa; 8]);
            let got =
                machine(own, &memory, &mut fx).complete(&store, &mut state, &mut scratch.window());
            assert_eq!(got, exception(vector));
            assert_eq!(state, before);
            assert!(fx == flagged, "the flag and nothing else");
            assert_eq!(scratch.bytes(), [0xaa; 8]);
        }
    });
}

fn exception(vector: u8) -> Result<Progress, Incomplete> {
    Err(Incomplete::Fault(Exception { vector, error_code: None, address: None }.into()))
}

/// Bits of MXCSR that FXRSTOR would refuse do not get to it.
#[test]
fn no_contents_of_an_fx_area_can_fault() {
    with_handler(|own| {
        let memory = Flat::new(0);
        let mut state = state_64();
        // STMXCSR [RBX]
        let instruction = GuestInstruction::decode(&state, &[0x0f, 0xae, 0x1b]).unwrap();
        let store = Store::of(&instruction, &state).unwrap();
        let mut fx = FxArea([0xff; 512]);
        // Pending x87 exceptions do not concern STMXCSR.
        let mut scratch = Scratch::new(store.linear(), &[0; 4]);
        let got =
            machine(own, &memory, &mut fx).complete(&store, &mut state, &mut scratch.window());
        assert_eq!(got, Ok(Progress::Done));
        let mxcsr = u32::from_le_bytes(scratch.bytes().try_into().unwrap());
        assert!(mxcsr & 0xffbf == 0xffbf && mxcsr >> 18 == 0, "as much as the processor has");
    });
}
