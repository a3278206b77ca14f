//! What AppArmor or SELinux shall confine the program as.
//!
//! Guarantees: the kernel is told through the node's own procfs, so that no mount of the container's can take its
//! place; a label that the kernel refuses ends the child.

use sys::Errno;

use super::super::report::{At, Op, Stage, Trouble};
use super::Job;
use crate::plan::Label;

impl Job<'_> {
    /// Sets the label that the next exec gives this process. It runs before the user changes and before the process
    /// gives up gaining privileges: both could forbid it.
    pub(super) fn set_label(&self) -> Result<(), Trouble> {
        let write = |path, value| sys::fs::write_small(self.proc.fd(), path, value);
        match &self.process().label {
            None => Ok(()),
            Some(Label::AppArmor(command)) => match write(c"self/attr/apparmor/exec", command.to_bytes()) {
                // Linux before 5.1 has one file for all modules. An unknown profile gives the same error once more.
                Err(Errno::NOENT) => write(c"self/attr/exec", command.to_bytes()),
                other => other,
            },
            Some(Label::Selinux(context)) => write(c"self/attr/exec", context.to_bytes()),
        }
        .at(Stage::Label, Op::Write)
    }
}
