"""From the ledger to a provider: claim, send, settle."""
