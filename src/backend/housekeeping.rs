//! Checkpoints of a cluster with one process, which has no checkpointer: between two messages of the client.

use super::Backend;
use crate::guest::checkpoint;

impl Backend {
    /// Makes a checkpoint if the process has begun so many WAL segments since the last one that it is due, so that the
    /// files of older WAL are removed. In a failed transaction it is put off.
    ///
    /// # Errors
    /// When the checkpoint fails, or the guest traps.
    pub(super) fn checkpoint_if_due(&mut self) -> anyhow::Result<()> {
        if !self.guest().wal.is_checkpoint_due {
            return Ok(());
        }
        let in_block = self.is_in_transaction()?;
        if in_block && self.call::<(), i32>("IsAbortedTransactionBlockState", ())? != 0 {
            return Ok(());
        }
        // A timeout of the idle session does not end this halfway.
        let holdoff = self.facts().address("InterruptHoldoffCount")?;
        self.write_u32(holdoff, 1)?;
        if !in_block {
            self.call::<(), ()>("StartTransactionCommand", ())?;
        }
        self.store.data_mut().native_stack.begin();
        checkpoint::make(&mut self.store)?;
        if !in_block {
            self.call::<(), ()>("CommitTransactionCommand", ())?;
        }
        self.write_u32(holdoff, 0)
    }
}
