"""Sends deliveries from the ledger to the providers, and stores the outcomes in the ledger."""
