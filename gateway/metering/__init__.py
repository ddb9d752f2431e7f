"""Usage records from the board slot to the ledger. Imports nothing here, so that the data plane stays light."""
