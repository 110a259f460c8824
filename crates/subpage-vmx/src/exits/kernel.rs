//! Function and process of the guest's kernel, by the names that came with it.

use subpage_emulate::{Access, read_linear};
use subpage_linux::{Memory, RuntimeAddress, Slide};

use crate::event::Named;
use crate::vcpu::Vcpu;
use crate::vmx::field::GuestField as G;

/// Memory of the guest by linear addresses of the processor that has exited.
struct Linear<'a> {
    vcpu: &'a Vcpu,
    state: &'a subpage_emulate::guest::State,
}

impl Memory for Linear<'_> {
    fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
        let Self { vcpu, state } = self;
        let (memory, linear) = (&vcpu.machine.ram, address.as_u64());
        read_linear(memory, vcpu.paging(), state, linear, Access::SYSTEM_READ, buffer).is_ok()
    }
}

impl Vcpu {
    /// What the guest's kernel calls the function at `rip`, and the task that runs here. It has not moved,
    /// since only `nokaslr` is started with a policy.
    pub(super) fn named(&self, rip: Option<u64>) -> Named<'static> {
        let names = self.machine.devices.as_ref().and_then(|devices| devices.names);
        let Some(names) = names else { return Named::default() };
        let function = rip.and_then(|rip| names.function_at(RuntimeAddress::new(rip)));
        // In a program, GS is the program's.
        let places = names.tasks().filter(|_| self.cpl() == 0);
        let task = places.and_then(|places| {
            let memory = Linear { vcpu: self, state: &self.state() };
            places.current(&memory, self.vmcs.guest(G::GS_BASE), Slide::ZERO)
        });
        Named { function, task }
    }
}
