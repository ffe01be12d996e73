"""The ledger's rows behind one interface; `base` says what every store promises."""
