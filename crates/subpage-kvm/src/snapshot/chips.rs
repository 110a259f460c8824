//! The state of the devices that KVM has: interrupt controllers, timer, clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::SnapshotError;

/// The state of KVM's own devices.
#[derive(Clone, Serialize, Deserialize)]
pub struct Chips {
    controllers: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
    clock: u64,
}

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl Chips {
    /// Reads it; no processor may be in the guest.
    pub fn save(vm: &VmFd) -> Result<Self, SnapshotError> {
        let failed = |what| move |error| SnapshotError::Chip { what, error };
        let mut controllers = Vec::new();
        for id in CONTROLLERS {
            let mut chip = kvm_irqchip { chip_id: id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map_err(failed("read an interrupt controller"))?;
            controllers.push(chip);
        }
        Ok(Self {
            controllers,
            timer: vm.get_pit2().map_err(failed("read the timer"))?,
            clock: vm.get_clock().map_err(failed("read the clock"))?.clock,
        })
    }

    /// Sets it; no processor may be in the guest.
    pub fn restore(&self, vm: &VmFd) -> Result<(), SnapshotError> {
        let failed = |what| move |error| SnapshotError::Chip { what, error };
        let clock = kvm_clock_data { clock: self.clock, ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(failed("set the clock"))?;
        vm.set_pit2(&self.timer).map_err(failed("set the timer"))?;
        for controller in &self.controllers {
            vm.set_irqchip(controller).map_err(failed("set an interrupt controller"))?;
        }
        Ok(())
    }
}
